//! The table of all environment variables and defaults, read once into an immutable [`Config`].
