use std::path::PathBuf;

/// Where in a topology file something stands: the key's path and its line and column, both from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Dotted path of the value, as `topology.nodes.client.exec[2]`.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.path)
    }
}

/// Why a topology file was refused.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file could not be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not YAML.
    #[error("not valid yaml: {0}")]
    Syntax(#[from] saphyr::ScanError),
    /// The document uses a feature that this runner leaves out.
    #[error("{0}: {1}")]
    Document(Place, String),
    /// A key that containerlab does not know.
    #[error("{0}: unknown field; fields known here: {1}")]
    Unknown(Place, String),
    /// A key that containerlab knows and this runner cannot honour.
    #[error("{0}: not honoured on namespaces: {1}")]
    NotHonoured(Place, &'static str),
    /// A value of the wrong shape or range.
    #[error("{0}: {1}")]
    Invalid(Place, String),
    /// An error in a named file.
    #[error("{}:{source}", file.display())]
    InFile {
        /// The file.
        file: PathBuf,
        /// The error in it.
        source: Box<TopologyError>,
    },
}
