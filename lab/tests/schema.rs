//! The topologies of this project are valid containerlab files, by containerlab's own schema.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::Value;

fn to_json(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(b)) => (*b).into(),
        Yaml::Value(Scalar::Integer(i)) => (*i).into(),
        Yaml::Value(Scalar::FloatingPoint(f)) => f.into_inner().into(),
        Yaml::Value(Scalar::String(s)) => s.as_ref().into(),
        Yaml::Sequence(items) => items.iter().map(to_json).collect(),
        Yaml::Mapping(map) => {
            map.iter().map(|(key, value)| (key.as_str().unwrap().to_owned(), to_json(value))).collect()
        }
        other => panic!("not expected in a topology: {other:?}"),
    }
}

#[test]
fn topologies_are_valid_containerlab_files() {
    let here = env!("CARGO_MANIFEST_DIR");
    let schema = std::fs::read_to_string(format!("{here}/schema/clab.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&serde_json::from_str(&schema).unwrap()).unwrap();
    let mut found = 0;
    for entry in std::fs::read_dir(here).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().ends_with(".clab.yml") {
            continue;
        }
        found += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let mut document = to_json(&Yaml::load_from_str(&text).unwrap()[0]);
        let errors: Vec<_> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:?}", path.display());
        lab::Topology::load(&path).unwrap();
        // The schema must be one that can say no.
        let node = document["topology"]["nodes"].as_object_mut().unwrap().values_mut().next().unwrap();
        node["colour"] = "red".into();
        assert!(!validator.is_valid(&document), "{}: an unknown field passed", path.display());
    }
    assert!(found > 0, "no topology found in {here}");
}
