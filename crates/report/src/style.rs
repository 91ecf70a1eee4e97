//! Colours, each with a meaning. All text reads the same without them.

use owo_colors::{OwoColorize, Style as Ansi};

/// What a text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// It is as it should be.
    Good,
    /// A test is not as it should be.
    Bad,
    /// Somebody should look at it some day.
    Odd,
    /// We could not do our work.
    Fault,
    /// Less important than its neighbours.
    Dim,
    /// A heading.
    Strong,
}

/// Whether texts are coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether they are.
    pub color: bool,
}

impl Style {
    /// The text in the colour of its meaning.
    #[must_use]
    pub fn paint(self, paint: Paint, text: &str) -> String {
        if !self.color {
            return text.to_owned();
        }
        let ansi = match paint {
            Paint::Good => Ansi::new().green(),
            Paint::Bad => Ansi::new().red().bold(),
            Paint::Odd => Ansi::new().yellow(),
            Paint::Fault => Ansi::new().magenta().bold(),
            Paint::Dim => Ansi::new().dimmed(),
            Paint::Strong => Ansi::new().bold(),
        };
        text.style(ansi).to_string()
    }
}
