// Package machine boots a stock Debian kernel in an emulated machine and runs one command there, with the host's own
// files: a virtual machine for tests of what the host's kernel does not have. It needs neither hardware virtualisation
// nor a disk image.
//
// The guest sees the host's root directory; what it writes stays in its memory, apart from one directory for results.
// A call of Run owns one emulator process and one temporary directory, and both are gone when it returns.
package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weft-cni/weft/test/kernel/machine/plan"
)

// Config says what to boot and what to run there.
type Config struct {
	Kernel Kernel
	// Modules are loaded before the command runs; the kernel finds others as it needs them.
	Modules []string
	Command []string
	Dir     string // an absolute path of the host
	Env     []string
	// Results is a directory of the host that the guest may write to, as plan.Results.
	Results string
	// Output receives what the command prints, as it does.
	Output io.Writer
	CPUs   int
	Memory string // in QEMU's words: 4G
	// BootTimeout bounds the time until the first output. The caller's context bounds the whole.
	BootTimeout time.Duration
}

// stopTimeout is how long the emulator may take to end after it was told to.
const stopTimeout = 5 * time.Second

// errNoBoot and errNoResult are how a guest fails by itself.
var (
	errNoBoot   = errors.New("the guest did not boot")
	errNoResult = errors.New("the guest ended without an exit status")
)

// Run boots the machine, runs the command and returns its exit status. An error means that the command did not run to
// its end; it carries the end of what the guest's kernel printed.
func Run(ctx context.Context, c Config) (status int, err error) {
	tmp, err := os.MkdirTemp("", "weft-kernel-")
	if err != nil {
		return 0, fmt.Errorf("boot a machine: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	exitFile := filepath.Join(c.Results, plan.ExitFile)
	if err := os.Remove(exitFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("boot a machine: %w", err)
	}
	initrd, console := filepath.Join(tmp, "initrd"), filepath.Join(tmp, "console")
	p := plan.Plan{KernelModules: c.Kernel.modules(), Probe: c.Modules, Command: c.Command, Dir: c.Dir, Env: c.Env}
	if err := writeInitrd(ctx, initrd, c.Kernel, p); err != nil {
		return 0, fmt.Errorf("boot a machine: %w", err)
	}
	if err := emulate(ctx, c, initrd, console); err != nil {
		return 0, fmt.Errorf("%w; the end of its console:\n%s", err, tail(console))
	}
	text, err := os.ReadFile(exitFile)
	if err != nil {
		return 0, fmt.Errorf("%w; the end of its console:\n%s", errNoResult, tail(console))
	}
	if status, err = strconv.Atoi(string(text)); err != nil {
		return 0, fmt.Errorf("read the exit status: %w", err)
	}
	return status, nil
}

// emulate runs the emulator until the guest powers off.
func emulate(ctx context.Context, c Config, initrd, console string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, emulator, emulatorArgs(c, initrd, console)...)
	var stderr bytes.Buffer
	output := &firstWrite{to: c.Output, seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = output, &stderr
	// Ctrl-C is for us to act on. Should we be killed, the emulator is too: the kernel ties that to the thread that
	// started it, which therefore has to live as long.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	boot := time.AfterFunc(c.BootTimeout, func() { cancel(fmt.Errorf("%w within %s", errNoBoot, c.BootTimeout)) })
	defer boot.Stop()
	go func() {
		select {
		case <-output.seen:
			boot.Stop()
		case <-ctx.Done():
		}
	}()
	err := cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", emulator, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

func emulatorArgs(c Config, initrd, console string) []string {
	share := func(tag, path, more string) string {
		return "local,mount_tag=" + tag + ",path=" + strings.ReplaceAll(path, ",",
			",,") + ",security_model=none,multidevs=remap" + more
	}
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
		"-smp", strconv.Itoa(c.CPUs), "-m", c.Memory,
		"-kernel", c.Kernel.image(), "-initrd", initrd,
		// A kernel that panics ends at once, because the machine does not reboot.
		"-append", "console=ttyS0 loglevel=7 panic=-1 mitigations=off nokaslr",
		"-serial", "file:" + console,
		"-virtfs", share(plan.RootTag, "/", ",readonly=on"),
		"-virtfs", share(plan.ResultsTag, c.Results, ""),
		"-device", "virtio-serial-pci",
		// Not "stdio": where standard input ends, that port hangs up.
		"-chardev", "file,id=output,path=/dev/fd/1", "-device", "virtserialport,chardev=output,name=" + plan.OutputPort,
	}
}

// firstWrite passes on what is written, and says when that begins.
type firstWrite struct {
	to   io.Writer
	seen chan struct{}
	any  bool
}

func (w *firstWrite) Write(p []byte) (int, error) {
	if !w.any {
		w.any = true
		close(w.seen)
	}
	return w.to.Write(p)
}

// consoleTail is how many lines of the console are shown.
const consoleTail = 45

func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "    " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return "    " + strings.Join(lines[max(0, len(lines)-consoleTail):], "\n    ")
}
