//! Plays tokens back.
