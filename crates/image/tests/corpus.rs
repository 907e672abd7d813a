//! Archives of GNU tar, bsdtar and Python: our reader lists the same entries as GNU tar.

use gantry_image::tarstream::{Header, Kind, TarError, TarStream};
use std::path::Path;
use std::process::Command;

/// Archives made at one time.
const BATCH: usize = 100;

/// A line as `tar --list --verbose` writes it, up to the time.
fn line(header: &Header) -> String {
    let kind = match header.kind {
        Kind::File => '-',
        Kind::HardLink => 'h',
        Kind::Symlink => 'l',
        Kind::Character => 'c',
        Kind::Block => 'b',
        Kind::Directory => 'd',
        Kind::Fifo => 'p',
    };
    let mut mode = String::new();
    for (shift, special, lower, upper) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = header.mode >> shift & 7;
        mode.push(if bits & 4 != 0 { 'r' } else { '-' });
        mode.push(if bits & 2 != 0 { 'w' } else { '-' });
        mode.push(match (header.mode & special != 0, bits & 1 != 0) {
            (true, true) => lower,
            (true, false) => upper,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    let size = match header.kind {
        Kind::Character | Kind::Block => format!("{},{}", header.device.0, header.device.1),
        _ => header.size.to_string(),
    };
    let escaped = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let link = match header.kind {
        Kind::HardLink => format!(" link to {}", escaped(&header.link)),
        Kind::Symlink => format!(" -> {}", escaped(&header.link)),
        _ => String::new(),
    };
    format!(
        "{kind}{mode} {}/{} {size} {} {}{link}",
        header.uid,
        header.gid,
        header.mtime.0,
        escaped(&header.path)
    )
}

fn ours(path: &Path) -> Result<Vec<String>, TarError> {
    let file = std::fs::File::open(path).unwrap();
    let mut stream = TarStream::new(std::io::BufReader::new(file), 10_000);
    let mut lines = Vec::new();
    while let Some(header) = stream.next_entry()? {
        lines.push(line(&header));
    }
    Ok(lines)
}

/// `-rw-r--r-- 0/0   5 2023-11-14 22:13:20.25 name`
fn gnus(path: &Path) -> Vec<String> {
    let output = Command::new("tar")
        .args(["--list", "--verbose", "--numeric-owner", "--full-time"])
        .args(["--quoting-style=literal", "--file"])
        .arg(path)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}: {output:?}", path.display());
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .map(|line| {
            let mut rest = line;
            let mut word = || {
                let trimmed = rest.trim_start_matches(' ');
                let (word, after) = trimmed.split_once(' ').unwrap();
                rest = after;
                word.to_owned()
            };
            let (mode, owner, size, date, time) = (word(), word(), word(), word(), word());
            let whole = time.split('.').next().unwrap();
            let seconds: jiff::Timestamp = format!("{date}T{whole}Z").parse().unwrap();
            // Times of different lengths are made as wide as the widest; no name of the corpus begins with a blank.
            let rest = rest.trim_start_matches(' ');
            format!("{mode} {owner} {size} {} {rest}", seconds.as_second())
        })
        .collect()
}

#[test]
fn the_same_entries_as_gnu_tar() {
    let count: usize = std::env::var("GANTRY_TEST_ARCHIVES").map_or(200, |n| n.parse().unwrap());
    let mut entries = 0;
    // Some at a time: together they would fill the disk.
    for seed in 0..count.div_ceil(BATCH) {
        entries += same(BATCH.min(count - seed * BATCH), seed);
    }
    assert!(entries > 3 * count, "{entries} entries");
}

/// Makes so many archives and compares them. Answers how many entries they had.
fn same(count: usize, seed: usize) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus.py"))
        .arg(folder.path())
        .args([count.to_string(), seed.to_string()])
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let mut entries = 0;
    for number in 0..count {
        let path = folder.path().join(format!("{number}.tar"));
        let ours = ours(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let gnus = gnus(&path);
        if ours != gnus {
            let kept = std::env::temp_dir().join("gantry-differs.tar");
            let _ = std::fs::copy(&path, &kept);
            for (a, b) in ours.iter().zip(&gnus) {
                assert_eq!(
                    a,
                    b,
                    "archive {number} of seed {seed}, kept as {}",
                    kept.display()
                );
            }
            assert_eq!(
                ours.len(),
                gnus.len(),
                "archive {number} of seed {seed}, kept as {}",
                kept.display()
            );
        }
        entries += ours.len();
    }
    entries
}
