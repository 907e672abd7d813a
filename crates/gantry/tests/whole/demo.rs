//! The demo: from nothing to a page in a browser, and the same again.

use crate::GANTRY;
use gantry_testkit::{Options, World, eventually, run};

#[test]
fn the_demo_serves_its_page() {
    let world = World::stopped(
        GANTRY,
        Options {
            isolated: true,
            ..Options::default()
        },
    );
    let done = world.gantry(&["up", "--detach", "--demo"]);
    assert_eq!(done.code, 0, "{done}");
    assert!(
        done.stderr.lines().count() <= 7 && done.stderr.starts_with("ready in "),
        "{done}"
    );
    let url = done
        .stderr
        .split_whitespace()
        .find(|word| word.starts_with("http://"))
        .unwrap_or_else(|| panic!("no URL: {done}"))
        .to_owned();
    let page = eventually("the page", crate::SOON, || {
        let mut curl = world.enter("curl");
        let done = run(curl.args(["-sS", "--max-time", "5", &url]), None);
        if done.code == 0 {
            Ok(done.stdout)
        } else {
            Err(done.to_string())
        }
    });
    let id = world.docker(&["ps", "-q"]).ok();
    for part in [&id, "64.0 MiB", "0.50", ">32<"] {
        assert!(page.contains(part), "{part} is not on the page:\n{page}");
    }
    // Again: the same container.
    let again = world.gantry(&["demo"]);
    assert!(again.code == 0 && again.stderr.contains(&url), "{again}");
    assert_eq!(world.docker(&["ps", "-aq"]).ok(), id);
}
