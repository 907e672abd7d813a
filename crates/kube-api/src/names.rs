//! Whether a string is a name, a label, a port name and so on; each function gives Kubernetes' sentences about what is wrong.
//!
//! Spec: Kubernetes, "Object Names and IDs", "Labels and Selectors"; RFC 1123, RFC 1035.

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const UNDERSCORE: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn regex(message: &str, pattern: &str, examples: &[&str]) -> String {
    let mut text = message.to_owned();
    if examples.is_empty() {
        return format!("{text} (regex used for validation is '{pattern}')");
    }
    text.push_str(" (e.g. ");
    for (at, example) in examples.iter().enumerate() {
        if at > 0 {
            text.push_str(" or ");
        }
        text.push_str(&format!("'{example}', "));
    }
    format!("{text}regex used for validation is '{pattern}')")
}

fn longer(value: &str, limit: usize, unit: &str, errors: &mut Vec<String>) {
    if value.len() > limit {
        errors.push(format!("must be no more than {limit} {unit}"));
    }
}

fn lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(value: &str) -> bool {
    let bytes = value.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    lower(*first) && lower(*last) && bytes.iter().all(|b| lower(*b) || *b == b'-')
}

fn is_subdomain(value: &str) -> bool {
    value.split('.').all(is_label)
}

/// RFC 1123 label: the name of a namespace, of a container.
pub fn dns_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 63, "characters", &mut errors);
    if !is_label(value) {
        errors.push(if is_subdomain(value) {
            "must not contain dots".to_owned()
        } else {
            regex("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character", LABEL, &["my-name", "123-abc"])
        });
    }
    errors
}

/// RFC 1123 subdomain: the name of most objects.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 253, "characters", &mut errors);
    if !is_subdomain(value) {
        errors.push(regex("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character", SUBDOMAIN, &["example.com"]));
    }
    errors
}

/// A subdomain whose labels may have underscores: a DNS search path.
pub fn dns_subdomain_underscore(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 253, "characters", &mut errors);
    let good = value.split('.').all(|label| {
        let label = label.strip_prefix('_').unwrap_or(label);
        let bytes = label.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if lower(*a) && lower(*z))
            && bytes.iter().all(|b| lower(*b) || matches!(b, b'-' | b'_'))
    });
    if !good {
        errors.push(regex("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character", UNDERSCORE, &["example.com"]));
    }
    errors
}

/// `*.` and a subdomain.
pub fn wildcard_subdomain(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 253, "characters", &mut errors);
    if !value.strip_prefix("*.").is_some_and(is_subdomain) {
        let pattern = format!("\\*\\.{SUBDOMAIN}");
        errors.push(regex("a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character", &pattern, &["*.example.com"]));
    }
    errors
}

/// RFC 1035 label: the name of a service.
pub fn dns1035_label(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 63, "characters", &mut errors);
    if !(is_label(value) && value.as_bytes()[0].is_ascii_lowercase()) {
        errors.push(regex("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character", "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    errors
}

fn is_qualified(name: &str) -> bool {
    let bytes = name.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(a), Some(z)) if a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The key of a label or an annotation: a name with an optional domain before a slash.
pub fn qualified(value: &str) -> Vec<String> {
    const MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut errors = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                let wrong = dns_subdomain(prefix);
                errors.extend(wrong.iter().map(|text| format!("prefix part {text}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                regex(MESSAGE, QUALIFIED, &examples)
            )];
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_qualified(name) {
        errors.push(format!(
            "name part {}",
            regex(MESSAGE, QUALIFIED, &examples)
        ));
    }
    errors
}

/// The value of a label.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 63, "bytes", &mut errors);
    if !value.is_empty() && !is_qualified(value) {
        let pattern = format!("({QUALIFIED})?");
        errors.push(regex("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character", &pattern, &["MyValue", "my_value", "12345"]));
    }
    errors
}

/// A port between 1 and 65535.
pub fn port_number(port: i64) -> Vec<String> {
    range(port, 1, 65535)
}

/// A number between two others.
pub fn range(value: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&value) {
        Vec::new()
    } else {
        vec![format!("must be between {low} and {high}, inclusive")]
    }
}

/// RFC 6335 name of a port.
pub fn port_name(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 15, "characters", &mut errors);
    if value.is_empty() || !value.bytes().all(|b| lower(b) || b == b'-') {
        errors.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// `25%`.
pub fn percent(value: &str) -> Vec<String> {
    let good = value
        .strip_suffix('%')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if good {
        return Vec::new();
    }
    vec![regex(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// The name of an HTTP header in a probe.
pub fn header_name(value: &str) -> Vec<String> {
    if !value.is_empty()
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    {
        return Vec::new();
    }
    vec![regex(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// The name of an environment variable, by the wide rule of Kubernetes 1.34.
pub fn env_name(value: &str) -> Vec<String> {
    if value.is_empty() {
        return vec!["environment variable name must be non-empty".to_owned()];
    }
    if value
        .bytes()
        .all(|b| (0x20..0x7f).contains(&b) && b != b'=')
    {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned()]
}

/// A key of a ConfigMap or Secret.
pub fn config_key(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    longer(value, 253, "characters", &mut errors);
    let good = !value.is_empty()
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !good {
        errors.push(regex(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    if value == "." {
        errors.push("must not be '.'".to_owned());
    } else if value == ".." {
        errors.push("must not be '..'".to_owned());
    } else if value.starts_with("..") {
        errors.push("must not start with '..'".to_owned());
    }
    errors
}

/// A name that stands in a path of the API, as RBAC objects have.
pub fn path_segment(value: &str) -> Vec<String> {
    if value == "." || value == ".." {
        return vec![format!("may not be '{value}'")];
    }
    let mut errors = Vec::new();
    for part in ["/", "%"] {
        if value.contains(part) {
            errors.push(format!("may not contain '{part}'"));
        }
    }
    errors
}

/// A name before a generated suffix: the dash at its end is not the end of the name.
pub fn before_suffix(value: &str) -> String {
    match value.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let mut text: String = rest.chars().take(rest.chars().count() - 1).collect();
            text.push('a');
            text
        }
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_have_no_faults() {
        for (check, value) in [
            (dns_label as fn(&str) -> Vec<String>, "a-1"),
            (dns_subdomain, "a.b-1.c"),
            (dns1035_label, "web-1"),
            (qualified, "example.com/My_Name.1"),
            (qualified, "app"),
            (label_value, ""),
            (label_value, "A_1.b"),
            (port_name, "http-2"),
            (percent, "25%"),
            (header_name, "X-A"),
            (env_name, "1 strange.name"),
            (config_key, "..a".trim_start_matches('.')),
            (wildcard_subdomain, "*.example.com"),
            (dns_subdomain_underscore, "_tcp.a_b.c"),
            (path_segment, "system:node"),
        ] {
            assert_eq!(check(value), Vec::<String>::new(), "{value}");
        }
    }

    #[test]
    fn bad_names_have_kubernetes_sentences() {
        assert_eq!(
            dns_subdomain("X_bad"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns_label(&"a".repeat(64)),
            ["must be no more than 63 characters"]
        );
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert_eq!(port_name("12"), ["must contain at least one letter (a-z)"]);
        assert_eq!(qualified("/a"), ["prefix part must be non-empty"]);
        assert_eq!(path_segment(".."), ["may not be '..'"]);
        assert_eq!(path_segment("a/b"), ["may not contain '/'"]);
        assert_eq!(dns1035_label("").len(), 1);
        assert_eq!(before_suffix("web-"), "wea");
    }
}
