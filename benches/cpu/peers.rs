//! Runs other implementations in separate processes, which time one row of the table at a time. `torch_cpu.py` documents
//! the requests and the answers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// A process that times a row in one or more ways.
pub struct Peer {
    /// The name that it reports.
    pub name: String,
    /// The names of its ways.
    pub variants: Vec<String>,
    /// For the prepared row: the way, and the seconds of each call.
    samples: Vec<(String, Vec<f64>)>,
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `command`, whose words are separated by blanks.
    ///
    /// # Panics
    /// If the process does not start or does not answer.
    pub fn start(command: &str) -> Peer {
        let threads = rayon::current_num_threads().to_string();
        let mut words = command.split_whitespace();
        let mut process = Command::new(words.next().expect("a program"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Its idle threads must not spin while our calls run.
            .env("OMP_WAIT_POLICY", "PASSIVE")
            .envs(["THREADS", "RAYON_NUM_THREADS"].map(|name| (name, threads.as_str())))
            .spawn()
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        let to = process.stdin.take().expect("piped");
        let from = BufReader::new(process.stdout.take().expect("piped"));
        let mut peer = Peer {
            name: command.to_owned(),
            variants: Vec::new(),
            samples: Vec::new(),
            process,
            to,
            from,
        };
        let hello = peer.answer();
        peer.name = hello["name"].as_str().expect("a name").to_owned();
        peer.variants = variants(&hello);
        peer
    }

    /// Makes the process prepare a row, in as many ways as it can.
    pub fn prepare(&mut self, row: &Value) {
        let answer = self.ask(row);
        let variants = variants(&answer).into_iter();
        self.samples = variants.map(|variant| (variant, Vec::new())).collect();
    }

    /// Takes one sample of each way.
    pub fn sample(&mut self) {
        for i in 0..self.samples.len() {
            let variant = self.samples[i].0.as_str().into();
            let seconds = self.ask(&variant).as_f64().expect("a number");
            self.samples[i].1.push(seconds);
        }
    }

    /// The samples of the row.
    pub fn take(&mut self) -> Vec<(String, Vec<f64>)> {
        std::mem::take(&mut self.samples)
    }

    fn ask(&mut self, request: &Value) -> Value {
        writeln!(self.to, "{request}").unwrap_or_else(|error| panic!("{}: {error}", self.name));
        self.answer()
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        let read = self.from.read_line(&mut line).expect("text");
        assert!(read > 0, "{} ended without an answer", self.name);
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.name))
    }
}

fn variants(answer: &Value) -> Vec<String> {
    let name = |v: &Value| v.as_str().expect("a name").to_owned();
    let list = answer["variants"].as_array().expect("a list");
    list.iter().map(name).collect()
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The process ends when its input is closed, but not during a compilation, so it is killed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
