//! What the documents point to is there: files they link, and tests they say guard a promise.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn documents() -> Vec<PathBuf> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut documents: Vec<PathBuf> =
        docs.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect();
    documents.push(root().join("README.md"));
    documents
}

/// All Rust sources below a folder, as one text.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            if path.is_dir() {
                sources(&path)
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                fs::read_to_string(path).unwrap()
            } else {
                String::new()
            }
        })
        .collect()
}

#[test]
fn links_lead_to_files_of_the_project() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            let there = file.is_empty() || document.parent().unwrap().join(file).exists();
            if !link.starts_with("http") && !there {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn tests_that_are_named_as_guards_exist() {
    let text = fs::read_to_string(root().join("docs/consistency.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    // Metrics have names as long.
    let is_test =
        |name: &&str| name.matches('_').count() >= 3 && !name.contains([' ', '/', '.']) && !name.starts_with("caddy_");
    let named: Vec<&str> = quoted.filter(is_test).collect();
    assert!(named.len() >= 10, "the names were not found: {named:?}");
    let code: String = ["sidecar", "tests", "operator"].iter().map(|folder| sources(&root().join(folder))).collect();
    let missing: Vec<&&str> = named.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "docs/consistency.md names tests that are not there: {missing:?}");
}
