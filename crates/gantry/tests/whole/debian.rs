//! A real Debian image, made by mmdebstrap: a Python web server, published, limited, watched.

use crate::{GANTRY, SOON};
use gantry_testkit::{World, eventually, images, run};

#[test]
fn a_real_debian_image_serves_python() {
    let Some(rootfs) = images::debian_rootfs() else {
        return;
    };
    let world = World::isolated(GANTRY);
    world
        .docker(&[
            "import",
            "--change",
            "CMD [\"bash\"]",
            rootfs.to_str().unwrap(),
            "debian:stable",
        ])
        .ok();
    let release = world
        .docker(&["run", "--rm", "debian:stable", "cat", "/etc/debian_version"])
        .ok();
    assert!(
        release.starts_with(|c: char| c.is_ascii_digit()),
        "{release}"
    );
    // Owners, modes and set-uid bits came through.
    assert_eq!(
        world
            .docker(&[
                "run",
                "--rm",
                "debian:stable",
                "stat",
                "-c",
                "%a %U",
                "/usr/bin/passwd",
                "/tmp"
            ])
            .ok(),
        "4755 root\n1777 root"
    );
    let script = "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n def do_GET(s):\n  s.send_response(200); s.end_headers(); s.wfile.write(b'python')\nh.HTTPServer(('', 8080), H).serve_forever()\n";
    world
        .docker(&[
            "run",
            "-d",
            "--name",
            "py",
            "-p",
            "8080",
            "-m",
            "128m",
            "-u",
            "nobody",
            "debian:stable",
            "python3",
            "-u",
            "-c",
            script,
        ])
        .ok();
    let port = world.docker(&["port", "py", "8080/tcp"]).ok();
    let port = port
        .lines()
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let page = eventually("the python server", SOON, || {
        let mut curl = world.enter("curl");
        let done = run(
            curl.args([
                "-sS",
                "--max-time",
                "5",
                &format!("http://127.0.0.1:{port}/"),
            ]),
            None,
        );
        if done.code == 0 {
            Ok(done.stdout)
        } else {
            Err(done.to_string())
        }
    });
    assert_eq!(page, "python");
    let log = eventually("the log", SOON, || {
        let log = world.docker(&["logs", "py"]);
        if log.stderr.contains("GET / HTTP/1.1") {
            Ok(log.stderr)
        } else {
            Err(log.to_string())
        }
    });
    assert!(log.contains("200"), "{log}");
    assert_eq!(world.docker(&["exec", "py", "id", "-un"]).ok(), "nobody");
    let hog = world.docker(&[
        "run",
        "--rm",
        "-m",
        "48m",
        "--memory-swap",
        "48m",
        "debian:stable",
        "python3",
        "-c",
        "x = bytearray(512 << 20)",
    ]);
    assert_eq!(hog.code, 137, "{hog}");
}
