//! A YAML document as a tree in which every value knows its path and place, so that every error can name them.

use saphyr::{MarkedYaml, Scalar, YamlData, YamlLoader};
use saphyr_parser::{Parser, ScalarStyle};

use super::error::{Place, TopologyError};

/// One value of the document.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) place: Place,
    pub(super) data: Data,
}

/// What a value is. Scalars stay text as written: whether `0644` is a number is for the field to say.
#[derive(Debug, Clone)]
pub(super) enum Data {
    Null,
    Text(String),
    List(Vec<Value>),
    /// In file order.
    Map(Vec<(String, Value)>),
}

/// Parses the one document of a file.
pub(super) fn parse(text: &str) -> Result<Value, TopologyError> {
    let mut loader: YamlLoader<'_, MarkedYaml<'_>> = YamlLoader::default();
    loader.early_parse(false);
    Parser::new_from_str(text).load(&mut loader, true)?;
    if let Some(error) = loader.error() {
        return Err(error.clone().into());
    }
    let documents = loader.into_documents();
    let top = |line| Place { path: "document".to_owned(), line, column: 1 };
    match documents.as_slice() {
        [] => Err(TopologyError::Document(top(1), "the file is empty".to_owned())),
        [one] => convert(one, ""),
        [_, second, ..] => Err(TopologyError::Document(
            top(second.span.start.line()),
            "a second document; keep one per file".to_owned(),
        )),
    }
}

fn convert(node: &MarkedYaml<'_>, path: &str) -> Result<Value, TopologyError> {
    let place = Place {
        path: path.to_owned(),
        line: node.span.start.line(),
        column: node.span.start.col().saturating_add(1),
    };
    let data = match &node.data {
        YamlData::Representation(text, ScalarStyle::Plain, None) => plain(text),
        YamlData::Representation(text, _, None) => Data::Text(text.to_string()),
        YamlData::Value(Scalar::Null) => Data::Null,
        YamlData::Value(Scalar::String(text)) => Data::Text(text.to_string()),
        YamlData::Sequence(items) => Data::List(
            items
                .iter()
                .enumerate()
                .map(|(i, item)| convert(item, &format!("{path}[{i}]")))
                .collect::<Result<_, _>>()?,
        ),
        YamlData::Mapping(_) => Data::Map(convert_map(node, path)?),
        YamlData::Representation(_, _, Some(_)) | YamlData::Tagged(..) => {
            return Err(TopologyError::Document(place, "yaml tags are not supported".to_owned()));
        }
        YamlData::Value(_) | YamlData::Alias(_) | YamlData::BadValue => {
            return Err(TopologyError::Document(place, "value cannot be understood".to_owned()));
        }
    };
    Ok(Value { place, data })
}

fn plain(text: &str) -> Data {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Data::Null,
        other => Data::Text(other.to_owned()),
    }
}

fn convert_map(node: &MarkedYaml<'_>, path: &str) -> Result<Vec<(String, Value)>, TopologyError> {
    let mut entries: Vec<(String, Value)> = Vec::new();
    let mut merged: Vec<(String, Value)> = Vec::new();
    for (key, item) in node.data.as_mapping().into_iter().flatten() {
        let place = Place {
            path: path.to_owned(),
            line: key.span.start.line(),
            column: key.span.start.col().saturating_add(1),
        };
        let YamlData::Representation(name, _, _) = &key.data else {
            return Err(TopologyError::Document(place, "a key must be a plain word".to_owned()));
        };
        if name == "<<" {
            merged.extend(merge_source(convert(item, path)?)?);
            continue;
        }
        let below = if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
        let mut value = convert(item, &below)?;
        // An error about a field is about its key: that is where the reader looks.
        if !matches!(value.data, Data::Text(_)) {
            value.place = Place { path: below, ..place };
        }
        entries.push((name.to_string(), value));
    }
    for (name, value) in merged {
        if !entries.iter().any(|(known, _)| *known == name) {
            entries.push((name, value));
        }
    }
    Ok(entries)
}

/// The entries that a `<<` merge key brings: one mapping or several, earlier ones winning.
fn merge_source(value: Value) -> Result<Vec<(String, Value)>, TopologyError> {
    match value.data {
        Data::Map(entries) => Ok(entries),
        Data::List(items) => {
            let lists = items.into_iter().map(merge_source).collect::<Result<Vec<_>, _>>()?;
            Ok(lists.into_iter().flatten().collect())
        }
        Data::Null | Data::Text(_) => {
            Err(TopologyError::Document(value.place, "a merge key needs a mapping".to_owned()))
        }
    }
}

impl Value {
    /// The error for this value.
    pub(super) fn invalid(&self, reason: impl Into<String>) -> TopologyError {
        TopologyError::Invalid(self.place.clone(), reason.into())
    }

    /// The entries of a mapping; null is an empty one, as in containerlab's schema for nodes.
    pub(super) fn map(&self) -> Result<&[(String, Value)], TopologyError> {
        match &self.data {
            Data::Map(entries) => Ok(entries),
            Data::Null => Ok(&[]),
            Data::Text(_) | Data::List(_) => Err(self.invalid("must be a mapping")),
        }
    }

    pub(super) fn list(&self) -> Result<&[Value], TopologyError> {
        match &self.data {
            Data::List(items) => Ok(items),
            _ => Err(self.invalid("must be a list")),
        }
    }

    pub(super) fn text(&self) -> Result<&str, TopologyError> {
        match &self.data {
            Data::Text(text) => Ok(text),
            _ => Err(self.invalid("must be a single value")),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&self, range: &str) -> Result<T, TopologyError> {
        self.text()?.parse().map_err(|_| self.invalid(format!("must be a number ({range})")))
    }

    /// The value of `key`, if this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }
}
