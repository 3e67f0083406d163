//! Pictures of curves and points: sections of panels as SVG, and that SVG as PNG. Knows nothing of trials. Pure.
//!
//! What is highlighted differs in colour, dash, marker and lightness at once, so it can be told apart in grey and by
//! people who see few colours. A viewer that prefers dark gets other colours for the same elements, by a style sheet
//! in the SVG.

use std::fmt;
use std::sync::Arc;

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{register_font, FontStyle};

use super::scale::{short, Scale};

/// A picture could not be drawn or turned into pixels.
#[derive(Debug, thiserror::Error)]
#[error("drawing the picture: {0}")]
pub struct Error(String);

impl Error {
    fn of(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// A picture: sections below each other.
pub struct Figure {
    pub title: String,
    pub subtitle: String,
    pub sections: Vec<Section>,
}

/// A heading, what the highlights are, and panels in rows.
pub struct Section {
    pub heading: String,
    /// Names of the highlights: the first is [`Style::Highlight`]`(0)`.
    pub legend: Vec<String>,
    pub panels: Vec<Panel>,
}

/// One coordinate system.
pub struct Panel {
    /// What is up the vertical axis, with its unit.
    pub title: String,
    /// What is along the horizontal axis, with its unit.
    pub x_title: String,
    pub x: Scale,
    /// Where the horizontal axis has its ticks; empty: at round values.
    pub x_ticks: Vec<f64>,
    pub y: Scale,
    /// Later ones lie above.
    pub series: Vec<Series>,
}

/// Points and how they are shown.
pub struct Series {
    pub style: Style,
    pub shape: Shape,
    /// Horizontal and vertical values.
    pub points: Vec<(f64, f64)>,
}

/// The look of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One of the few that the legend names.
    Highlight(usize),
    /// One of the others, of which there are so many.
    Other(usize),
    /// What is derived from all of them.
    Summary,
}

/// The shape of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Points joined by lines.
    Line,
    /// Joined by steps: a value holds until the next.
    Steps,
    Points,
    /// A short horizontal line at each point.
    Ticks,
}

/// How many highlights can be told apart.
pub const HIGHLIGHTS_MAX: usize = 5;

/// Of highlights, on light and on dark; the light ones also differ in lightness.
const HIGHLIGHTS: [(RGBColor, &str); HIGHLIGHTS_MAX] = [
    (RGBColor(0x00, 0x4c, 0x99), "#6cb6ff"),
    (RGBColor(0xc8, 0x4a, 0x00), "#ff9a57"),
    (RGBColor(0x00, 0x8f, 0x6b), "#4fd1a5"),
    (RGBColor(0xa0, 0x3c, 0x96), "#e3a3dc"),
    (RGBColor(0xb0, 0x88, 0x00), "#f2d04b"),
];
const PAPER: (RGBColor, &str) = (RGBColor(0xff, 0xff, 0xff), "#0d1117");
const INK: (RGBColor, &str) = (RGBColor(0x1f, 0x23, 0x28), "#e6edf3");
const QUIET: (RGBColor, &str) = (RGBColor(0x59, 0x63, 0x6e), "#9aa4af");
const GRID: (RGBColor, &str) = (RGBColor(0xe4, 0xe7, 0xeb), "#262d36");
const OTHER: (RGBColor, &str) = (RGBColor(0x8a, 0x93, 0x9d), "#76808b");
/// Dash and gap of highlights, in pixels; the first is a line without gaps.
const DASHES: [(i32, i32); HIGHLIGHTS_MAX] = [(0, 0), (8, 3), (3, 3), (12, 5), (5, 6)];

/// plotters places everything on whole units; so many of them make a pixel.
const UNITS: i32 = 4;
/// Pixels of a PNG for each of the SVG.
const PNG_SCALE: f32 = 2.0;
const COLUMNS: usize = 3;
const PANEL: (i32, i32) = (400, 280);
const MARGIN: i32 = 24;
const HEADER: i32 = 70;
const SECTION_HEADER: i32 = 36;
const SECTION_GAP: i32 = 18;
const LEGEND_LINE: i32 = 20;
/// Legends have two columns: names of trials with their parameters are long.
const LEGEND_COLUMNS: usize = 2;
/// Markers on a line, at most.
const MARKERS_MAX: usize = 12;
/// Points of a line, at most: more cannot be seen in a panel.
const LINE_POINTS_MAX: usize = 300;
const FONT: &str = "sans-serif";

impl Figure {
    /// As SVG, in the colours that its viewer prefers.
    ///
    /// # Errors
    /// When plotters cannot draw it.
    pub fn svg(&self) -> Result<String, Error> {
        self.styled(&dark())
    }

    fn styled(&self, style: &str) -> Result<String, Error> {
        register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
            .map_err(|_| Error("the font is none".into()))?;
        let width = 2 * MARGIN + COLUMNS as i32 * PANEL.0;
        let height = HEADER + self.sections.iter().map(Section::height).sum::<i32>() + MARGIN;
        let mut svg = String::new();
        {
            let size = ((width * UNITS) as u32, (height * UNITS) as u32);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            area.fill(&PAPER.0).map_err(Error::of)?;
            text(&area, &self.title, (MARGIN, 18), 20, INK.0)?;
            text(&area, &self.subtitle, (MARGIN, 46), 14, QUIET.0)?;
            let mut top = HEADER;
            for section in &self.sections {
                section.draw(&area, top)?;
                top += section.height();
            }
            area.present().map_err(Error::of)?;
        }
        // In pixels; the view box stays in units. Colours on dark are a matter of style, not of elements.
        let end = svg.find('>').ok_or_else(|| Error("no SVG came out".into()))?;
        let view = format!("0 0 {} {}", width * UNITS, height * UNITS);
        Ok(format!(
            "<svg width=\"{width}\" height=\"{height}\" viewBox=\"{view}\" \
             xmlns=\"http://www.w3.org/2000/svg\" role=\"img\">\n\
             <title>{}</title>\n<style>{style}</style>{}",
            escaped(&self.title),
            &svg[end + 1..]
        ))
    }

    /// As PNG, in the colours of light.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub fn png(&self) -> Result<Vec<u8>, Error> {
        use resvg::{tiny_skia, usvg};
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
        let family = fonts.faces().find_map(|face| face.families.first().map(|(name, _)| name.clone()));
        fonts.set_sans_serif_family(family.unwrap_or_default());
        let options = usvg::Options { fontdb: Arc::new(fonts), ..usvg::Options::default() };
        let tree = usvg::Tree::from_str(&self.styled("")?, &options).map_err(Error::of)?;
        let size = tree.size().to_int_size().scale_by(PNG_SCALE).ok_or_else(|| Error("it is empty".into()))?;
        let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height())
            .ok_or_else(|| Error(format!("{} by {} pixels are too many", size.width(), size.height())))?;
        resvg::render(&tree, tiny_skia::Transform::from_scale(PNG_SCALE, PNG_SCALE), &mut pixels.as_mut());
        pixels.encode_png().map_err(Error::of)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Section {
    fn height(&self) -> i32 {
        self.panels_top() + self.panels.len().div_ceil(COLUMNS) as i32 * PANEL.1 + SECTION_GAP
    }

    fn panels_top(&self) -> i32 {
        SECTION_HEADER + self.legend.len().div_ceil(LEGEND_COLUMNS) as i32 * LEGEND_LINE + 8
    }

    fn draw(&self, area: &Area<'_>, top: i32) -> Result<(), Error> {
        text(area, &self.heading, (MARGIN, top + 8), 16, INK.0)?;
        let column_width = COLUMNS as i32 * PANEL.0 / LEGEND_COLUMNS as i32;
        let lines = self.legend.len().div_ceil(LEGEND_COLUMNS);
        for (place, name) in self.legend.iter().enumerate() {
            let left = MARGIN + (place / lines) as i32 * column_width;
            let middle = top + SECTION_HEADER + (place % lines) as i32 * LEGEND_LINE + LEGEND_LINE / 2;
            let ends = [(left * UNITS, middle * UNITS), ((left + 36) * UNITS, middle * UNITS)];
            line(area, &ends, Style::Highlight(place))?;
            area.draw(&marker(((left + 18) * UNITS, middle * UNITS), Style::Highlight(place))).map_err(Error::of)?;
            text(area, name, (left + 46, middle - 8), 14, INK.0)?;
        }
        for (place, panel) in self.panels.iter().enumerate() {
            let left = MARGIN + (place % COLUMNS) as i32 * PANEL.0;
            let top = top + self.panels_top() + (place / COLUMNS) as i32 * PANEL.1;
            let units = |from: i32, length: i32| (from * UNITS, (from + length) * UNITS);
            let ((left, right), (top, bottom)) = (units(left, PANEL.0), units(top, PANEL.1));
            let (width, height) = area.dim_in_pixel();
            let own = area.margin(top, height as i32 - bottom, left, width as i32 - right);
            panel.draw(&own)?;
        }
        Ok(())
    }
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Result<(), Error> {
        text(area, &self.title, (4, 6), 14, INK.0)?;
        let places: Vec<Vec<(f64, f64)>> = self.series.iter().map(|series| self.places(series)).collect();
        let (x, y) = (places.iter().flatten().map(|point| point.0), places.iter().flatten().map(|point| point.1));
        let (mut x, y) = (self.x.axis(x, 6), self.y.axis(y, 5));
        if !self.x_ticks.is_empty() {
            x.ticks = self.x_ticks.iter().filter_map(|tick| Some((self.x.place(*tick)?, short(*tick)))).collect();
        }
        let mut chart = ChartBuilder::on(area)
            .margin_top(30 * UNITS)
            .margin_right(22 * UNITS)
            .margin_bottom(10 * UNITS)
            .x_label_area_size(40 * UNITS)
            .y_label_area_size(54 * UNITS)
            .build_cartesian_2d(x, y)
            .map_err(Error::of)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.0.stroke_width(UNITS as u32))
            .axis_style(QUIET.0.stroke_width(UNITS as u32))
            .set_all_tick_mark_size(4 * UNITS)
            .label_style((FONT, 15 * UNITS).into_font().color(&QUIET.0))
            .axis_desc_style((FONT, 16 * UNITS).into_font().color(&QUIET.0))
            .x_desc(self.x_title.as_str())
            .draw()
            .map_err(Error::of)?;
        let plane = chart.plotting_area();
        let inside = plane.strip_coord_spec();
        let origin = inside.get_base_pixel();
        for (series, places) in self.series.iter().zip(places) {
            let pixels: Vec<(i32, i32)> = places
                .iter()
                .map(|place| plane.map_coordinate(place))
                .map(|(x, y)| (x - origin.0, y - origin.1))
                .collect();
            series.draw(&inside, &pixels)?;
        }
        Ok(())
    }

    fn places(&self, series: &Series) -> Vec<(f64, f64)> {
        let place = |&(x, y): &(f64, f64)| Some((self.x.place(x)?, self.y.place(y)?));
        let places: Vec<(f64, f64)> = series.points.iter().filter_map(place).collect();
        if series.shape == Shape::Line && places.len() > LINE_POINTS_MAX {
            let step = places.len().div_ceil(LINE_POINTS_MAX);
            let last = places.len() - 1;
            return places
                .into_iter()
                .enumerate()
                .filter(|(i, _)| i % step == 0 || *i == last)
                .map(|(_, point)| point)
                .collect();
        }
        places
    }
}

impl Series {
    fn draw(&self, area: &Area<'_>, pixels: &[(i32, i32)]) -> Result<(), Error> {
        let highlight = matches!(self.style, Style::Highlight(_));
        match self.shape {
            Shape::Line if pixels.len() > 1 => {
                line(area, pixels, self.style)?;
                if highlight {
                    let step = pixels.len().div_ceil(MARKERS_MAX);
                    for &pixel in pixels.iter().step_by(step) {
                        area.draw(&marker(pixel, self.style)).map_err(Error::of)?;
                    }
                }
            }
            Shape::Steps => {
                let mut corners: Vec<(i32, i32)> = Vec::new();
                for &(x, y) in pixels {
                    if let Some(&(_, before)) = corners.last() {
                        corners.push((x, before));
                    }
                    corners.push((x, y));
                }
                line(area, &corners, self.style)?;
            }
            // A line of one point is a point.
            Shape::Line | Shape::Points => {
                for &pixel in pixels {
                    area.draw(&marker(pixel, self.style)).map_err(Error::of)?;
                }
            }
            Shape::Ticks => {
                for &(x, y) in pixels {
                    line(area, &[(x - 9 * UNITS, y), (x + 9 * UNITS, y)], self.style)?;
                }
            }
        }
        Ok(())
    }
}

impl Style {
    /// Colour, opacity of lines and of points. Many above each other become a shade that hides nothing.
    fn look(self) -> (RGBColor, f64, f64) {
        match self {
            Self::Highlight(place) => (HIGHLIGHTS[place % HIGHLIGHTS_MAX].0, 1.0, 1.0),
            Self::Other(count) => {
                let share = |visible: f64, least: f64| (visible / count.max(1) as f64).clamp(least, 0.8);
                (OTHER.0, share(12.0, 0.08), share(60.0, 0.25))
            }
            Self::Summary => (INK.0, 1.0, 1.0),
        }
    }

    fn stroke(self) -> ShapeStyle {
        let (colour, opacity, _) = self.look();
        let quarters = if matches!(self, Self::Other(_)) { 4 } else { 7 };
        colour.mix(opacity).stroke_width((quarters * UNITS / 4) as u32)
    }
}

fn line(area: &Area<'_>, pixels: &[(i32, i32)], style: Style) -> Result<(), Error> {
    let dash = match style {
        Style::Highlight(place) => DASHES[place % HIGHLIGHTS_MAX],
        Style::Other(_) | Style::Summary => (0, 0),
    };
    match dash {
        (0, 0) => area.draw(&PathElement::new(pixels.to_vec(), style.stroke())).map_err(Error::of),
        (on, off) => {
            let dashed = DashedPathElement::new(pixels.iter().copied(), on * UNITS, off * UNITS, style.stroke());
            area.draw(&dashed).map_err(Error::of)
        }
    }
}

type Marker<'a> = DynElement<'static, SVGBackend<'a>, (i32, i32)>;

fn marker<'a>(at: (i32, i32), style: Style) -> Marker<'a> {
    let (colour, _, opacity) = style.look();
    let filled = colour.mix(opacity).filled();
    let shape = |radius: i32, corners: &[(i32, i32)]| {
        let points: Vec<(i32, i32)> =
            corners.iter().map(|(x, y)| (at.0 + x * radius / 8, at.1 + y * radius / 8)).collect();
        Polygon::new(points, filled).into_dyn()
    };
    let radius = 4 * UNITS;
    match style {
        Style::Highlight(0) => Circle::new(at, radius, filled).into_dyn(),
        Style::Highlight(1) => shape(radius, &[(-8, -7), (8, -7), (8, 8), (-8, 8)]),
        Style::Highlight(2) => shape(radius, &[(0, -10), (9, 7), (-9, 7)]),
        Style::Highlight(3) => shape(radius, &[(0, -11), (11, 0), (0, 11), (-11, 0)]),
        Style::Highlight(_) => shape(radius, &[(0, 10), (9, -7), (-9, -7)]),
        Style::Other(_) | Style::Summary => Circle::new(at, 3 * UNITS, filled).into_dyn(),
    }
}

fn text(area: &Area<'_>, text: &str, (x, y): (i32, i32), size: i32, colour: RGBColor) -> Result<(), Error> {
    // plotters' sizes are of the whole line.
    let font = (FONT, f64::from(size * UNITS) * 1.24).into_font().color(&colour);
    let style = font.pos(Pos::new(HPos::Left, VPos::Top));
    area.draw_text(text, &style, (x * UNITS, y * UNITS)).map_err(Error::of)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// The other colours, by the colours that the elements have.
fn dark() -> String {
    let mut rules = String::new();
    for (light, dark) in [PAPER, INK, QUIET, GRID, OTHER].iter().chain(&HIGHLIGHTS) {
        let light = format!("#{:02X}{:02X}{:02X}", light.0, light.1, light.2);
        for property in ["fill", "stroke"] {
            rules.push_str(&format!("[{property}=\"{light}\"]{{{property}:{dark}}}"));
        }
    }
    format!("@media (prefers-color-scheme: dark){{{rules}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_drawn_gives_a_picture() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 1e300, 1e-300, 5.0];
        let points: Vec<(f64, f64)> = odd.iter().flat_map(|&x| odd.iter().map(move |&y| (x, y))).collect();
        let shapes = [Shape::Line, Shape::Steps, Shape::Points, Shape::Ticks];
        let scales = [Scale::Linear, Scale::Log, Scale::Categories(vec!["a<b".into(), "&".into()])];
        let mut panels = Vec::new();
        for (x, y) in scales.iter().flat_map(|x| scales[..2].iter().map(move |y| (x, y))) {
            for (points, place) in [(points.clone(), 0), (Vec::new(), 9), (vec![(1.0, 1.0)], 3)] {
                let series = shapes.iter().map(|&shape| Series {
                    style: Style::Highlight(place),
                    shape,
                    points: points.clone(),
                });
                panels.push(Panel {
                    title: "t".into(),
                    x_title: "x".into(),
                    x: x.clone(),
                    x_ticks: if place == 3 { odd.to_vec() } else { Vec::new() },
                    y: y.clone(),
                    series: series.collect(),
                });
            }
        }
        let section = Section { heading: "<h>".into(), legend: vec!["a & b".into()], panels };
        let figure = Figure { title: "a<b>&c".into(), subtitle: String::new(), sections: vec![section] };
        let svg = figure.svg().unwrap();
        assert!(svg.starts_with("<svg ") && svg.contains("<title>a&lt;b&gt;&amp;c</title>"), "{}", &svg[..300]);
        assert_eq!(svg.matches("<svg").count(), 1);
        assert_eq!(&figure.png().unwrap()[..4], b"\x89PNG");
    }
}
