//! Chooses the device, a real one or the emulator, once per process.
//!
//! `XACT_REQUIRE_GPU=1` is for machines with a GPU: nothing may run on the emulator, and no trial may be ignored.

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use xact::cudarc::driver::CudaStream;
use xact::{Device, Queue};

/// The value of `--device` and of `XACT_DEVICE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// A real device if there is one, else the emulator.
    Auto,
    /// A real device; without one, an error.
    Gpu,
    /// The emulator, with the ordinal of its device.
    Emulated(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> Result<Choice, String> {
        match s {
            "auto" => Ok(Choice::Auto),
            "gpu" => Ok(Choice::Gpu),
            "emulated" => Ok(Choice::Emulated(0)),
            other => match other.strip_prefix("emulated:") {
                Some(model) => emulated_model(model).map(Choice::Emulated),
                None => Err(format!(
                    "{other} is not auto, gpu, emulated or emulated:MODEL, such as emulated:h200"
                )),
            },
        }
    }
}

/// The ordinal of the emulator's first device of a model.
fn emulated_model(model: &str) -> Result<usize, String> {
    let is_it = |name: &str| {
        let mut words = name.split([' ', '-']);
        words.any(|word| word.eq_ignore_ascii_case(model))
    };
    cuda_emulator::device_names()
        .position(is_it)
        .ok_or_else(|| {
            let names: Vec<_> = cuda_emulator::device_names().collect();
            format!("the emulator has no {model}, but {}", names.join(", "))
        })
}

impl Choice {
    /// The value of the environment variable `XACT_DEVICE`; `auto` if it is not set.
    pub fn from_env() -> Result<Choice, String> {
        match std::env::var("XACT_DEVICE") {
            Ok(value) => value.parse().map_err(|e| format!("XACT_DEVICE: {e}")),
            Err(_) => Ok(Choice::Auto),
        }
    }

    /// Whether the emulator runs, given whether the machine has a real device and whether one is required.
    pub fn emulates(self, present: bool, required: bool) -> Result<bool, String> {
        match self {
            Choice::Gpu => Ok(false),
            Choice::Emulated(_) if required => {
                Err("XACT_REQUIRE_GPU=1 forbids the emulated device".to_owned())
            }
            Choice::Emulated(_) => Ok(true),
            Choice::Auto => Ok(!present && !required),
        }
    }
}

/// Whether `XACT_REQUIRE_GPU=1`.
pub fn gpu_required() -> bool {
    std::env::var("XACT_REQUIRE_GPU").is_ok_and(|v| v == "1")
}

/// The device of this process, and a stream on it.
#[derive(Clone)]
pub struct Gpu {
    /// The device, with its kernels.
    pub device: Device,
    /// The stream on which all work is queued.
    pub stream: Arc<CudaStream>,
    /// Whether the device is emulated.
    pub emulated: bool,
    /// The name of the device; that of an emulated device says so.
    pub name: String,
}

impl Gpu {
    /// Makes a queue on the stream, with a workspace that is large enough for all tests and commands.
    pub fn queue(&self) -> Result<Queue, xact::Error> {
        let mut queue = Queue::new(&self.stream)?;
        queue.reserve(1 << 20)?;
        Ok(queue)
    }
}

/// Opens the device that `choice` names. The first call determines it for the whole process.
pub fn open(choice: Choice) -> Result<Gpu, String> {
    static CHOSEN: OnceLock<Result<bool, String>> = OnceLock::new();
    let emulated = CHOSEN
        .get_or_init(|| {
            let present = cuda_emulator::real_device_present();
            let emulated = choice.emulates(present, gpu_required())?;
            if emulated {
                cuda_emulator::install().map_err(|e| e.to_string())?;
                substitute_kernels()?;
            }
            Ok(emulated)
        })
        .clone()?;
    let ordinal = match choice {
        Choice::Emulated(ordinal) => ordinal,
        Choice::Auto | Choice::Gpu => 0,
    };
    let device = Device::new(ordinal).map_err(|e| e.to_string())?;
    // The stream is not the default one, because that cannot be captured.
    let stream = device
        .context()
        .new_stream()
        .map_err(|e| format!("{:?}", e.0))?;
    let name = device.name().map_err(|e| e.to_string())?;
    Ok(Gpu {
        device,
        stream,
        emulated,
        name,
    })
}

/// The device that the environment selects.
///
/// # Panics
/// If it cannot be opened.
pub fn gpu() -> Gpu {
    Choice::from_env().and_then(open).expect("a device")
}

/// Makes the emulator load the kernels in the folder that `XACT_SUBSTITUTES` names, `<stem>.sm_<target>.ptx`, instead of
/// those that were compiled into this program. `cargo xtask mutants` tests its mutants in this way.
fn substitute_kernels() -> Result<(), String> {
    let Some(folder) = std::env::var_os("XACT_SUBSTITUTES") else {
        return Ok(());
    };
    let mut found = std::fs::read_dir(&folder)
        .map_err(|e| format!("XACT_SUBSTITUTES={}: {e}", folder.display()))?;
    found.try_for_each(|file| {
        let path = file.map_err(|e| e.to_string())?.path();
        let is_it = |image: &&xact::cuda::Image| {
            path.file_name() == Some(format!("{}.sm_{}.ptx", image.stem, image.target).as_ref())
        };
        let image = xact::cuda::images().iter().find(is_it);
        let image = image.ok_or_else(|| format!("{} is the PTX of no kernel", path.display()))?;
        let text = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
        cuda_emulator::substitute(image.ptx, &text);
        Ok(())
    })
}

/// Opens the device that the environment selects, for the main function of a test. Prints its name, or why there is none.
pub fn open_for_tests() -> Result<Gpu, ExitCode> {
    match Choice::from_env().and_then(open) {
        Ok(gpu) => {
            eprintln!("device: {}", gpu.name);
            Ok(gpu)
        }
        Err(e) => {
            eprintln!("{e}");
            Err(ExitCode::FAILURE)
        }
    }
}
