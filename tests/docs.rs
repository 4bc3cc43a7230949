//! The pages that are shown away from the repository: on docs.rs, and of the package.

use std::fs;
use std::path::Path;

/// A link into the repository would lead nowhere there.
#[test]
fn pages_link_to_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in [
        "README.md",
        "docs/accuracy.md",
        "docs/gpu-day.md",
        "docs/performance.md",
        "docs/pitfalls.md",
    ] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        for (_, rest) in text
            .match_indices("](")
            .map(|(at, _)| text.split_at(at + 2))
        {
            let target = rest.split([')', '\n']).next().unwrap_or_default();
            let is_absolute = target.starts_with("https://") || target.starts_with('#');
            assert!(is_absolute, "{page}: {target}");
        }
    }
}
