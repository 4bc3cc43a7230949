//! Graphs: the recorded work of a captured stream, which a graph launch repeats in the same order.

use std::ffi::c_void;
use std::sync::Arc;

use super::error::Error;
use super::event::Event;
use super::launch::Launch;
use super::memory::MemoryOp;
use super::order::Work;
use super::{Handle, Registry, Status, call, context, put, stream};

/// A piece of work of a stream.
#[derive(Clone)]
pub(crate) enum Node {
    Launch(Launch),
    Memory(MemoryOp),
    Host(unsafe extern "C" fn(*mut c_void), usize),
    Record(Arc<Event>),
    /// A dependency: nothing to do in a sequence.
    Nothing,
    /// A graph launched inside a capture.
    Graph(Arc<Executable>),
}

/// A captured graph.
pub(crate) struct Graph {
    device: usize,
    nodes: Vec<Node>,
}

/// A graph that can be launched.
pub(crate) struct Executable {
    device: usize,
    nodes: Vec<Node>,
}

static GRAPHS: Registry<Graph> = Registry::new();
static EXECUTABLES: Registry<Executable> = Registry::new();

impl Executable {
    fn run(&self, work: Work) -> Result<(), Error> {
        for node in &self.nodes {
            match node {
                Node::Launch(l) => l.run(work)?,
                // SAFETY: who captured the copy keeps its host memory while the graph is used.
                Node::Memory(op) => unsafe { op.run(work) }?,
                // SAFETY: who captured the call gave a function for exactly this.
                Node::Host(f, data) => unsafe { f(*data as *mut c_void) },
                Node::Record(e) => e.record(work.stream_id),
                Node::Nothing => {}
                Node::Graph(g) => g.run(work)?,
            }
        }
        Ok(())
    }
}

/// Registers the result of a capture.
pub(crate) fn insert(device: usize, nodes: Vec<Node>) -> Handle {
    GRAPHS.insert(Graph { device, nodes })
}

/// Makes a graph executable.
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    to: *mut Handle,
    graph: Handle,
    _flags: u64,
) -> Status {
    call(|| {
        context::current()?;
        let g = GRAPHS.get(graph)?;
        let executable = Executable {
            device: g.device,
            nodes: g.nodes.clone(),
        };
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, EXECUTABLES.insert(executable)) }
    })
}

/// Does the work of a graph.
pub unsafe extern "C" fn cuGraphLaunch(graph: Handle, on: Handle) -> Status {
    call(|| {
        let g = EXECUTABLES.get(graph)?;
        if g.device != context::current()? {
            return Err(Error::INVALID_CONTEXT);
        }
        match stream::enqueue(on, || Node::Graph(g.clone()))? {
            Some(work) => g.run(work),
            None => Ok(()),
        }
    })
}

/// Prepares a graph on the device: nothing to do.
pub unsafe extern "C" fn cuGraphUpload(graph: Handle, on: Handle) -> Status {
    call(|| {
        EXECUTABLES.get(graph)?;
        stream::capture_id(on)?.map_or(Ok(()), |_| Err(Error::STREAM_CAPTURE_UNSUPPORTED))
    })
}

/// Destroys a graph. Executable graphs that were made from it remain.
pub unsafe extern "C" fn cuGraphDestroy(graph: Handle) -> Status {
    call(|| GRAPHS.remove(graph).map(|_| ()))
}

/// Destroys an executable graph.
pub unsafe extern "C" fn cuGraphExecDestroy(graph: Handle) -> Status {
    call(|| EXECUTABLES.remove(graph).map(|_| ()))
}

/// The number of nodes of a graph; the nodes themselves have no handles.
pub unsafe extern "C" fn cuGraphGetNodes(
    graph: Handle,
    nodes: *mut Handle,
    count: *mut usize,
) -> Status {
    call(|| {
        let g = GRAPHS.get(graph)?;
        if !nodes.is_null() {
            return Err(Error::NOT_SUPPORTED);
        }
        let n = g
            .nodes
            .iter()
            .filter(|n| !matches!(n, Node::Nothing))
            .count();
        // SAFETY: the caller gives a valid place.
        unsafe { put(count, n) }
    })
}
