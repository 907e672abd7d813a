//! Names for containers that nobody named.

const ADJECTIVES: [&str; 64] = [
    "able", "amber", "ample", "autumn", "bold", "bright", "brisk", "calm", "candid", "careful",
    "cheerful", "clear", "clever", "coastal", "cordial", "crisp", "curious", "dapper", "daring",
    "deft", "eager", "early", "earnest", "fair", "fearless", "fluent", "frank", "gallant",
    "gentle", "glad", "golden", "graceful", "hardy", "hearty", "honest", "jolly", "keen", "kind",
    "lively", "loyal", "lucid", "mellow", "merry", "mighty", "modest", "nimble", "noble",
    "patient", "placid", "polite", "proud", "quick", "quiet", "radiant", "serene", "silver",
    "sincere", "steady", "sturdy", "sunny", "tidy", "valiant", "warm", "witty",
];

/// People whose work computing stands on.
const SURNAMES: [&str; 64] = [
    "abel",
    "allen",
    "babbage",
    "backus",
    "bartik",
    "boole",
    "borg",
    "cantor",
    "cerf",
    "church",
    "clarke",
    "codd",
    "conway",
    "cray",
    "curie",
    "dijkstra",
    "engelbart",
    "erdos",
    "euler",
    "faraday",
    "feynman",
    "floyd",
    "franklin",
    "galois",
    "gauss",
    "goedel",
    "goldberg",
    "hamilton",
    "hamming",
    "hertz",
    "hilbert",
    "hoare",
    "holberton",
    "hopper",
    "huffman",
    "iverson",
    "jennings",
    "kay",
    "kilby",
    "kleene",
    "knuth",
    "kolmogorov",
    "lamarr",
    "lamport",
    "liskov",
    "lovelace",
    "markov",
    "maxwell",
    "mccarthy",
    "minsky",
    "moore",
    "naur",
    "neumann",
    "noether",
    "noyce",
    "perlman",
    "ritchie",
    "shannon",
    "stallings",
    "thompson",
    "torvalds",
    "turing",
    "wiener",
    "zuse",
];

/// A name from four random bytes; `attempt` > 0 means that earlier ones were taken and adds a number.
pub(crate) fn pick(random: [u8; 4], attempt: u32) -> String {
    let [adjective, surname, high, low] = random;
    let base = format!(
        "{}_{}",
        ADJECTIVES[usize::from(adjective) % 64],
        SURNAMES[usize::from(surname) % 64]
    );
    match attempt {
        0 => base,
        1..=3 => format!("{base}{}", low % 10),
        _ => format!("{base}{}", u16::from_be_bytes([high, low])),
    }
}

/// Docker's rule: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub(crate) fn is_valid(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() >= 2
        && bytes.len() <= 255
        && bytes[0].is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_picked_name_is_valid_and_later_attempts_differ() {
        for byte in 0..=255 {
            assert!(is_valid(&pick([byte, byte, 1, 2], 0)));
            assert!(is_valid(&pick([byte, byte, 1, 2], 9)));
        }
        assert_ne!(pick([0; 4], 0), pick([0; 4], 1));
    }

    #[test]
    fn names_that_docker_refuses() {
        for bad in ["", "a", "-ab", ".ab", "a b", "a/b", "ä1", "a\nb"] {
            assert!(!is_valid(bad), "{bad:?}");
        }
        assert!(is_valid("a1") && is_valid("web-1.prod_x"));
    }
}
