//! A JSON patch that is applied while it is written, so that each step sees what the ones before it did.
//!
//! Patches are written by hand rather than found by comparing: a comparison of lists would turn "insert first" into
//! rewriting every container, and lose what this program does not know of them.

use json_patch::{AddOperation, Patch, PatchOperation, ReplaceOperation, jsonptr::PointerBuf};
use serde_json::{Value, json};

/// A document and the operations that led to it.
pub(crate) struct Patcher {
    document: Value,
    operations: Vec<PatchOperation>,
}

impl Patcher {
    /// Starts with `document`.
    pub(crate) fn new(document: Value) -> Self {
        Self { document, operations: Vec::new() }
    }

    /// The document as it is now.
    pub(crate) fn document(&self) -> &Value {
        &self.document
    }

    /// The patch from the first document to the last.
    pub(crate) fn finish(self) -> Patch {
        Patch(self.operations)
    }

    /// Appends to the list at `path`, which is made when absent.
    pub(crate) fn append(&mut self, path: &[&str], value: Value) {
        self.list(path);
        self.add(path, "-", value);
    }

    /// Inserts at the start of the list at `path`, which is made when absent.
    pub(crate) fn insert_first(&mut self, path: &[&str], value: Value) {
        self.list(path);
        self.add(path, "0", value);
    }

    /// Sets a field of the object at `path`, which is made when absent.
    pub(crate) fn set(&mut self, path: &[&str], field: &str, value: Value) {
        if !self.at(path).is_some_and(Value::is_object) {
            self.put(path, json!({}));
        }
        self.add(path, field, value);
    }

    /// Replaces what is at `path`, which exists.
    pub(crate) fn replace(&mut self, path: &[&str], value: Value) {
        let path = PointerBuf::from_tokens(path.iter().copied());
        self.push(PatchOperation::Replace(ReplaceOperation { path, value }));
    }

    fn list(&mut self, path: &[&str]) {
        if !self.at(path).is_some_and(Value::is_array) {
            self.put(path, json!([]));
        }
    }

    fn put(&mut self, path: &[&str], value: Value) {
        if let Some((field, parent)) = path.split_last() {
            self.add(parent, field, value);
        }
    }

    fn add(&mut self, parent: &[&str], field: &str, value: Value) {
        let path = PointerBuf::from_tokens(parent.iter().copied().chain([field]));
        self.push(PatchOperation::Add(AddOperation { path, value }));
    }

    fn at(&self, path: &[&str]) -> Option<&Value> {
        self.document.pointer(PointerBuf::from_tokens(path.iter().copied()).as_str())
    }

    fn push(&mut self, operation: PatchOperation) {
        let step = Patch(vec![operation]);
        // Only a path into something that is no container fails; the API server would refuse such a pod anyway.
        if json_patch::patch(&mut self.document, &step).is_ok() {
            self.operations.extend(step.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patch_leads_from_the_first_document_to_the_last() {
        let before = json!({"spec": {"containers": [{"name": "app"}]}});
        let mut patcher = Patcher::new(before.clone());
        patcher.insert_first(&["spec", "containers"], json!({"name": "first"}));
        patcher.append(&["spec", "volumes"], json!({"name": "v"}));
        patcher.set(&["metadata"], "annotations", json!({}));
        patcher.set(&["metadata", "annotations"], "a/b~c", json!("1"));
        patcher.replace(&["spec", "containers", "1", "name"], json!("second"));
        let after = patcher.document().clone();
        let mut applied = before;
        json_patch::patch(&mut applied, &patcher.finish()).unwrap();
        assert_eq!(applied, after);
        assert_eq!(after["spec"]["containers"][1]["name"], "second");
        assert_eq!(after["metadata"]["annotations"]["a/b~c"], "1");
    }
}
