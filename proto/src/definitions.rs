//! Services as operators write them: what directors tell each other of their files, so that a difference can be shown by
//! service and key, and so that one of them can have its own put in force everywhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::sync::decode::{definition, name};
use crate::sync::{FrameError, wire};
use crate::tables::{MAX_DEFINITIONS, MAX_NAME, MAX_SERVICES, TableError};

/// Each service's part of a configuration file, by its name.
pub type Definitions = BTreeMap<String, Arc<str>>;

/// The only format there is.
const FORMAT: u32 = 1;

/// Largest encoding, in bytes: all definitions, with a name and the lengths for each.
pub const MAX_ENCODED: usize = 16 + MAX_DEFINITIONS + MAX_SERVICES * (MAX_NAME + 16);

/// Encodes definitions canonically, never as nothing.
pub fn encode(definitions: &Definitions) -> Bytes {
    let definition =
        |(name, text): (&String, &Arc<str>)| wire::Definition { name: name.clone(), text: text.to_string() };
    let definitions = definitions.iter().map(definition).collect();
    wire::Definitions { format: FORMAT, definitions }.encode_to_vec().into()
}

/// Decodes what [`encode`] gave: every length and name checked.
///
/// # Errors
/// [`FrameError`] with the field that is wrong.
pub fn decode(bytes: Bytes) -> Result<Definitions, FrameError> {
    let message =
        wire::Definitions::decode(bytes).map_err(|error| FrameError::Encoding(error.to_string()))?;
    if message.format != FORMAT {
        return Err(FrameError::Range { field: "format", value: message.format.into() });
    }
    if message.definitions.len() > MAX_SERVICES {
        return Err(TableError::TooManyServices { count: message.definitions.len() }.into());
    }
    let mut definitions = Definitions::new();
    for wire::Definition { name, text } in message.definitions {
        let name = self::name(name)?;
        let text = definition(&name, text)?;
        if definitions.insert(name.clone(), text).is_some() {
            return Err(FrameError::Twice { name });
        }
    }
    check_size(&definitions)?;
    Ok(definitions)
}

/// Checks the limit on all definitions together.
///
/// # Errors
/// [`TableError::TooManyTogether`].
pub fn check_size(definitions: &Definitions) -> Result<(), TableError> {
    let count: usize = definitions.values().map(|text| text.len()).sum();
    match count {
        0..=MAX_DEFINITIONS => Ok(()),
        _ => Err(TableError::TooManyTogether { what: "bytes of definitions", count, limit: MAX_DEFINITIONS }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::MAX_DEFINITION;

    #[test]
    fn definitions_survive_their_encoding_and_limits_hold() {
        let definitions: Definitions = [("web", "[[service]]\nname = \"web\"\n"), ("dns", "")]
            .into_iter()
            .map(|(name, text)| (name.to_owned(), Arc::from(text)))
            .collect();
        assert_eq!(decode(encode(&definitions)), Ok(definitions.clone()));
        assert_eq!(decode(encode(&Definitions::new())), Ok(Definitions::new()));
        let long = Definitions::from([("web".to_owned(), Arc::from("x".repeat(MAX_DEFINITION + 1)))]);
        let error = TableError::DefinitionLength { service: "web".to_owned(), length: MAX_DEFINITION + 1 };
        assert_eq!(decode(encode(&long)), Err(FrameError::Table(error)));
        let text: Arc<str> = "x".repeat(MAX_DEFINITION).into();
        let many: Definitions = (0..33).map(|number| (number.to_string(), Arc::clone(&text))).collect();
        assert!(matches!(decode(encode(&many)), Err(FrameError::Table(TableError::TooManyTogether { .. }))));
        let twice = wire::Definition { name: "web".to_owned(), text: String::new() };
        let twice = wire::Definitions { format: FORMAT, definitions: vec![twice.clone(), twice] };
        let error = FrameError::Twice { name: "web".to_owned() };
        assert_eq!(decode(twice.encode_to_vec().into()), Err(error));
    }
}
