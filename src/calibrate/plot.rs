//! Divergence against experts, as a picture: SVG, which is text and needs no library.

use std::fmt::Write;

use super::report::Report;
use crate::eval::heatmap::escaped;

const SIZE: (f64, f64) = (640.0, 420.0);
/// Of the axes inside the picture: left, top, right, bottom.
const BOX: (f64, f64, f64, f64) = (76.0, 48.0, 616.0, 360.0);

/// The least divergence that is drawn; logarithms end somewhere.
const LEAST: f64 = 1e-9;

/// Colours that differ in brightness, too.
const FIXED: &str = "#8c8c8c";
const REL: &str = "#d98324";
const PROFILE: &str = "#1f5fa8";

struct Point {
    k: f64,
    kl: f64,
    error: Option<f64>,
    name: String,
}

/// The frame: experts along, divergence up in powers of ten.
struct Axes {
    k: (f64, f64),
    /// Exponents.
    kl: (f64, f64),
}

impl Axes {
    fn x(&self, k: f64) -> f64 {
        BOX.0 + (k - self.k.0) / (self.k.1 - self.k.0).max(1e-9) * (BOX.2 - BOX.0)
    }

    fn y(&self, kl: f64) -> f64 {
        let exponent = kl.max(LEAST).log10().clamp(self.kl.0, self.kl.1);
        BOX.3 - (exponent - self.kl.0) / (self.kl.1 - self.kl.0) * (BOX.3 - BOX.1)
    }
}

/// Profiles, fixed numbers of experts and the rule `rel`, each as a line.
pub fn svg(report: &Report) -> String {
    let other = |prefix: &'static str| -> Vec<Point> {
        let points = report.others.iter().filter(|other| other.routing.starts_with(prefix)).map(|other| Point {
            k: other.mean_experts,
            kl: other.divergence.mean_kl,
            error: other.divergence.mean_kl_error,
            name: other.routing.clone(),
        });
        points.collect()
    };
    let profiles = report.profiles.iter().map(|tried| Point {
        k: tried.mean_experts,
        kl: tried.divergence.mean_kl,
        error: tried.divergence.mean_kl_error,
        name: tried.name.clone(),
    });
    let series = [
        ("topk, a fixed number", FIXED, other("topk")),
        ("rel", REL, other("rel")),
        ("profiles", PROFILE, profiles.collect()),
    ];

    let noise = report.noise.map(|noise| noise.mean_kl).filter(|kl| *kl > 0.0);
    let all = || {
        series.iter().flat_map(|(.., points)| points).map(|point| point.kl).chain(noise).map(|kl| kl.max(LEAST).log10())
    };
    let lowest = all().fold(f64::INFINITY, f64::min).floor();
    let highest = all().fold(f64::NEG_INFINITY, f64::max).ceil();
    let axes = Axes {
        k: (report.experts_fewest as f64, report.experts_used as f64),
        kl: if lowest.is_finite() && highest.is_finite() { (lowest, highest.max(lowest + 1.0)) } else { (-6.0, 0.0) },
    };

    let mut out = String::new();
    // Writing to a String cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{text}");
    };
    line(format_args!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}" font-family="sans-serif" font-size="12">"#,
        SIZE.0, SIZE.1
    ));
    line(format_args!(r##"<rect width="{}" height="{}" fill="#ffffff"/>"##, SIZE.0, SIZE.1));
    line(format_args!(
        r#"<text x="12" y="22" font-size="14">{}: divergence from all experts</text>"#,
        escaped(&report.model)
    ));
    line(format_args!(
        r#"<text x="12" y="38">{} tokens of text that no threshold was made from; bars: one standard error</text>"#,
        report.text.heldout.scored
    ));
    for exponent in axes.kl.0 as i32..=axes.kl.1 as i32 {
        let y = axes.y(10_f64.powi(exponent));
        line(format_args!(r##"<path d="M{} {y:.1}H{}" stroke="#e0e0e0"/>"##, BOX.0, BOX.2));
        line(format_args!(r#"<text x="{}" y="{:.1}" text-anchor="end">1e{exponent}</text>"#, BOX.0 - 6.0, y + 4.0));
    }
    for k in report.experts_fewest..=report.experts_used {
        let x = axes.x(k as f64);
        line(format_args!(r##"<path d="M{x:.1} {}V{}" stroke="#e0e0e0"/>"##, BOX.1, BOX.3));
        line(format_args!(r#"<text x="{x:.1}" y="{}" text-anchor="middle">{k}</text>"#, BOX.3 + 16.0));
    }
    line(format_args!(
        r#"<text x="{:.0}" y="{}" text-anchor="middle">experts of a token, mean</text>"#,
        (BOX.0 + BOX.2) / 2.0,
        BOX.3 + 34.0
    ));
    line(format_args!(
        r#"<text x="16" y="{0:.0}" text-anchor="middle" transform="rotate(-90 16 {0:.0})">nats of a token</text>"#,
        (BOX.1 + BOX.3) / 2.0
    ));
    if let Some(kl) = noise {
        let y = axes.y(kl);
        line(format_args!(r##"<path d="M{} {y:.1}H{}" stroke="#8c8c8c" stroke-dasharray="4 4"/>"##, BOX.0, BOX.2));
        line(format_args!(r##"<text x="{}" y="{:.1}" fill="#5c5c5c">noise</text>"##, BOX.0 + 6.0, y - 4.0));
    }
    for (index, (name, colour, points)) in series.iter().enumerate() {
        let path: Vec<String> =
            points.iter().map(|point| format!("{:.1} {:.1}", axes.x(point.k), axes.y(point.kl))).collect();
        if path.len() > 1 {
            line(format_args!(r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#, path.join("L")));
        }
        for point in points {
            let (x, y) = (axes.x(point.k), axes.y(point.kl));
            if let Some(error) = point.error {
                let (low, high) = (axes.y(point.kl - error), axes.y(point.kl + error));
                line(format_args!(r#"<path d="M{x:.1} {low:.1}V{high:.1}" stroke="{colour}"/>"#));
            }
            line(format_args!(
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{colour}"><title>{}: {:.2} experts, {:.2e} nats</title></circle>"#,
                escaped(&point.name),
                point.k,
                point.kl
            ));
        }
        let x = BOX.0 + 4.0 + index as f64 * 180.0;
        line(format_args!(r#"<circle cx="{x:.0}" cy="{}" r="3.5" fill="{colour}"/>"#, SIZE.1 - 10.0));
        line(format_args!(r#"<text x="{:.0}" y="{}">{name}</text>"#, x + 8.0, SIZE.1 - 6.0));
    }
    line(format_args!("</svg>"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_the_logarithm() {
        let axes = Axes { k: (2.0, 6.0), kl: (-4.0, 0.0) };
        assert_eq!((axes.x(2.0), axes.x(6.0)), (BOX.0, BOX.2));
        assert_eq!((axes.y(1.0), axes.y(1e-4)), (BOX.1, BOX.3));
        assert!((axes.y(1e-2) - (BOX.1 + BOX.3) / 2.0).abs() < 1e-9);
        // Below the frame is at its edge: nothing has no logarithm.
        assert_eq!((axes.y(0.0), axes.y(-1.0)), (BOX.3, BOX.3));
    }
}
