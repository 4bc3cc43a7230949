//! Runs an op on the tensors of a `.safetensors` file, so that people of other stacks can compare
//! theirs with ours without writing Rust.

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use support::choose::{self, Choice};
use support::run::{self, How};
use xact::{Activation, Compat, Element, EpsGradient, Parameters, Xielu, reference};

/// Run an op on the tensors of a .safetensors file
#[derive(Parser)]
#[command(name = "apply")]
struct Arguments {
    #[command(subcommand)]
    op: Op,
}

#[derive(Subcommand)]
enum Op {
    /// xIELU: reads x (f32, f16 or bf16, any shape), alpha_p and alpha_n (f32, one element each), for
    /// backward also dy (type and shape of x); writes y, or dx, dalpha_p and dalpha_n
    Xielu {
        #[command(flatten)]
        files: Files,
        /// alpha_p and alpha_n are used as they are, not passed through a softplus
        #[arg(long)]
        effective: bool,
        /// The slope at 0
        #[arg(long, default_value_t = 0.5, allow_hyphen_values = true)]
        beta: f32,
        /// Clamp x inside expm1, as Hugging Face does with -1e-6
        #[arg(long, allow_hyphen_values = true)]
        eps: Option<f32>,
        /// The gradient of the clamp
        #[arg(long, value_enum, default_value = "autograd", requires = "eps")]
        eps_gradient: EpsGradientName,
    },
}

#[derive(clap::Args)]
struct Files {
    /// The .safetensors file to read
    #[arg(long)]
    input: PathBuf,
    /// The .safetensors file to write
    #[arg(long)]
    output: PathBuf,
    /// Who computes: the f64 reference on the CPU (rounded once), the emulated or a real device, or
    /// the best device there is
    #[arg(long, value_enum, default_value = "auto")]
    device: Backend,
    /// What is computed
    #[arg(long, value_enum)]
    direction: Direction,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backend {
    Reference,
    Emulated,
    Gpu,
    Auto,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Direction {
    Forward,
    Backward,
}

#[derive(Clone, Copy, ValueEnum)]
enum EpsGradientName {
    Analytic,
    Autograd,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    match arguments.op {
        Op::Xielu {
            files,
            effective,
            beta,
            eps,
            eps_gradient,
        } => {
            let op = Xielu {
                parameters: if effective {
                    Parameters::Effective
                } else {
                    Parameters::Raw
                },
                beta,
                compat: eps.map(|eps| Compat {
                    eps,
                    gradient: match eps_gradient {
                        EpsGradientName::Analytic => EpsGradient::Analytic,
                        EpsGradientName::Autograd => EpsGradient::Autograd,
                    },
                }),
            };
            apply(&op, &files)
        }
    }
}

/// A tensor to be written.
struct Output {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn apply<A: Activation>(op: &A, files: &Files) -> Result<(), String> {
    let path = files.input.display();
    let bytes = std::fs::read(&files.input).map_err(|e| format!("cannot read {path}: {e}"))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| format!("{path} is not a safetensors file: {e}"))?;
    let outputs = match tensor(&tensors, "x")?.dtype() {
        Dtype::F32 => compute::<A, f32>(op, files, &tensors),
        Dtype::F16 => compute::<A, f16>(op, files, &tensors),
        Dtype::BF16 => compute::<A, bf16>(op, files, &tensors),
        other => Err(format!("x is {other:?}; it must be F32, F16 or BF16")),
    }?;
    write(&files.output, &outputs)
}

fn compute<A: Activation, T: Element>(
    op: &A,
    files: &Files,
    tensors: &SafeTensors<'_>,
) -> Result<Vec<Output>, String> {
    let x_view = tensor(tensors, "x")?;
    let x = elements::<T>(&x_view);
    // Optional parameters are those at the end; one that is not in the file has the value of its flag.
    let (required, optional) = A::PARAMS.split_at(A::PARAMS.len() - A::OPTIONAL);
    let given = optional.iter().filter(|name| tensors.tensor(name).is_ok());
    let params = required
        .iter()
        .chain(given)
        .map(|name| scalar(tensors, name))
        .collect::<Result<Vec<f32>, _>>()?;
    let params_f64: Vec<_> = params.iter().map(|&p| f64::from(p)).collect();
    let gpu = match files.device {
        Backend::Reference => None,
        Backend::Emulated => Some(choose::open(Choice::Emulated)?),
        Backend::Gpu => Some(choose::open(Choice::Gpu)?),
        Backend::Auto => Some(choose::open(Choice::Auto)?),
    };
    eprintln!(
        "device: {}",
        gpu.as_ref()
            .map_or("f64 reference", |gpu| gpu.name.as_str())
    );
    let how = How::default();
    let like_x = |name, values: &[T]| Output {
        name,
        dtype: x_view.dtype(),
        shape: x_view.shape().to_vec(),
        bytes: bytemuck::cast_slice(values).to_vec(),
    };
    if files.direction == Direction::Forward {
        let y = match &gpu {
            None => round(&reference::forward(op, &params_f64, &x)),
            Some(gpu) => run::forward(gpu, op, &params, &x, &how).map_err(|e| e.to_string())?,
        };
        return Ok(vec![like_x("y", &y)]);
    }
    let dy_view = tensor(tensors, "dy")?;
    if (dy_view.dtype(), dy_view.shape()) != (x_view.dtype(), x_view.shape()) {
        return Err(format!(
            "dy is {:?} {:?}, but x is {:?} {:?}; they must be alike",
            dy_view.dtype(),
            dy_view.shape(),
            x_view.dtype(),
            x_view.shape()
        ));
    }
    let dy = elements::<T>(&dy_view);
    let (dx, dparams) = match &gpu {
        None => {
            let (dx, dparams) =
                reference::backward(op, &params_f64, &x, &dy).map_err(|e| e.to_string())?;
            (round(&dx), round(&dparams))
        }
        Some(gpu) => run::backward(gpu, op, &params, &x, &dy, &how).map_err(|e| e.to_string())?,
    };
    let mut outputs = vec![like_x("dx", &dx)];
    for (name, value) in A::GRADIENTS.iter().zip(dparams) {
        outputs.push(Output {
            name,
            dtype: Dtype::F32,
            shape: tensor(tensors, A::PARAMS[outputs.len() - 1])?
                .shape()
                .to_vec(),
            bytes: value.to_le_bytes().to_vec(),
        });
    }
    Ok(outputs)
}

fn round<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

fn tensor<'a>(tensors: &SafeTensors<'a>, name: &str) -> Result<TensorView<'a>, String> {
    tensors.tensor(name).map_err(|_| {
        let mut names = tensors.names();
        names.sort_unstable();
        format!(
            "the input has no tensor {name} (it has: {})",
            names.join(", ")
        )
    })
}

fn elements<T: Element>(view: &TensorView<'_>) -> Vec<T> {
    bytemuck::pod_collect_to_vec(view.data())
}

fn scalar(tensors: &SafeTensors<'_>, name: &str) -> Result<f32, String> {
    let view = tensor(tensors, name)?;
    match (view.dtype(), elements::<f32>(&view).as_slice()) {
        (Dtype::F32, &[value]) => Ok(value),
        (dtype, _) => Err(format!(
            "{name} is {dtype:?} {:?}; it must be F32 with one element",
            view.shape()
        )),
    }
}

/// Writes the whole file or none of it. Follows links; replaces nothing but a regular file, whose
/// permissions the new one takes.
fn write(path: &Path, outputs: &[Output]) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot write {}: {e}", path.display());
    let views = outputs
        .iter()
        .map(|o| Ok((o.name, TensorView::new(o.dtype, o.shape.clone(), &o.bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|e| failed(&e))?;
    let bytes = safetensors::serialize(views, None).map_err(|e| failed(&e))?;
    let target = behind_links(path).map_err(|e| failed(&e))?;
    let existing = match target.metadata() {
        Ok(existing) if !existing.is_file() => return Err(failed(&"it is not a regular file")),
        Ok(existing) => Some(existing.permissions()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(failed(&e)),
    };
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty());
    let mut file = new_file()
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .map_err(|e| failed(&e))?;
    file.write_all(&bytes).map_err(|e| failed(&e))?;
    if let Some(permissions) = existing {
        let changed = file.as_file().set_permissions(permissions);
        changed.map_err(|e| failed(&e))?;
    }
    file.persist(&target).map_err(|e| failed(&e))?;
    Ok(())
}

/// Where `path` leads if it is a link, also to something that does not exist yet.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    /// More than that is a circle.
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        if !path.symlink_metadata().is_ok_and(|data| data.is_symlink()) {
            return Ok(path);
        }
        let link = path.read_link()?;
        path = path
            .parent()
            .map_or(link.clone(), |folder| folder.join(link));
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

/// A temporary file with the permissions of any new file, where tempfile's own are the owner's alone.
fn new_file() -> tempfile::Builder<'static, 'static> {
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The umask takes its part when the file is made.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    builder
}
