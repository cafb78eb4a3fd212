// Command init is the first process of the guest that package machine boots. It loads the modules that the root needs,
// puts a writable overlay in memory above the host's read-only root, runs one command there, writes its exit status
// into the results and powers the machine off.
//
// It owns the whole guest, on one goroutine: every child is started and reaped here, among them the orphans of what the
// command left running.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/kernel/machine/plan"
)

// handlersFrom is the uptime from which on ovs-vswitchd 3.1.0 may start: earlier it works with 0 handler threads, and
// drops every packet that it has to decide about.
const handlersFrom = 11 * time.Second

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the first process of a virtual machine, not a program to run by hand")
		os.Exit(1)
	}
	// The serial console shows what goes wrong before the output port is there; the host keeps it.
	if err := run(); err != nil {
		fmt.Println("init:", err)
	}
	syscall.Sync()
	err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println("init: power off:", err)
}

func run() error {
	data, err := os.ReadFile(plan.File)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("read %s: %w", plan.File, err)
	}
	for _, name := range p.Modules {
		if err := loadModule(filepath.Join(plan.ModuleDir, name)); err != nil {
			return err
		}
	}
	if err := enterRoot(); err != nil {
		return err
	}
	output, err := outputPort()
	if err != nil {
		return err
	}
	defer output.Close()
	status, err := runInRoot(p, output)
	if err != nil {
		fmt.Fprintln(output, "guest:", err)
		return err
	}
	return os.WriteFile(filepath.Join(plan.Results, plan.ExitFile), []byte(strconv.Itoa(status)), 0o644)
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

// A few hundred kilobytes per request make 9p usable; "loose" caches what cannot change under a read-only mount.
const (
	ninep     = "trans=virtio,version=9p2000.L,msize=512000"
	newRoot   = "/new"
	hostRoot  = "/host"
	inMemory  = "/memory"
	memoryMax = "size=75%"
)

// enterRoot makes the overlay the root, as every initial RAM disk does it: the mount moves over the old root.
func enterRoot() error {
	err := mountAll([]mount{
		{plan.RootTag, hostRoot, "9p", syscall.MS_RDONLY, ninep + ",cache=loose"},
		{"tmpfs", inMemory, "tmpfs", 0, memoryMax},
	})
	if err != nil {
		return err
	}
	upper, work := inMemory+"/upper", inMemory+"/work"
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", hostRoot, upper, work)
	if err := mountAll([]mount{{"overlay", newRoot, "overlay", 0, layers}}); err != nil {
		return err
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// What the host's root has in these places is the host's own, or cannot be seen through 9p.
	return mountAll([]mount{
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
		{"devpts", "/dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", 0, ""},
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", plan.Scratch, "tmpfs", 0, memoryMax},
		{plan.ResultsTag, plan.Results, "9p", 0, ninep + ",cache=none"},
	})
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	return nil
}

func outputPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		name, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(name)) == plan.OutputPort {
			return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("there is no virtio port %s", plan.OutputPort)
}

// runInRoot prepares the kernel and runs the command; it returns the command's exit status.
func runInRoot(p plan.Plan, output *os.File) (int, error) {
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		return 0, err
	}
	release := unix.ByteSliceToString(kernel.Release[:])
	// modprobe looks here, and so does the kernel when it needs a module.
	if err := os.MkdirAll("/lib/modules", 0o755); err != nil {
		return 0, err
	}
	if err := os.Symlink(p.KernelModules, "/lib/modules/"+release); err != nil {
		return 0, err
	}
	for _, argv := range [][]string{
		append([]string{"modprobe", "-a"}, p.Probe...),
		{"ip", "link", "set", "lo", "up"},
	} {
		if status, err := runCommand(argv, "/", p.Env, output); err != nil {
			return 0, err
		} else if status != 0 {
			return 0, fmt.Errorf("%s ended with status %d", strings.Join(argv, " "), status)
		}
	}
	fmt.Fprintf(output, "guest: Linux %s, %s\n", release, unix.ByteSliceToString(kernel.Version[:]))
	fmt.Fprintf(output, "guest: kernel modules %s\n", strings.Join(p.Probe, ", "))
	if err := waitForUptime(handlersFrom); err != nil {
		return 0, err
	}
	return runCommand(p.Command, p.Dir, p.Env, output)
}

func waitForUptime(least time.Duration) error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("read the uptime: %w", err)
	}
	time.Sleep(least - time.Duration(now.Nano()))
	return nil
}

// runCommand runs a command to its end, and reaps whatever else ends meanwhile.
func runCommand(argv []string, dir string, env []string, output *os.File) (int, error) {
	path, err := lookPath(argv[0], env)
	if err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Dir: dir, Env: env, Files: []uintptr{null.Fd(), output.Fd(), output.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		return 0, fmt.Errorf("run %s in %s: %w", path, dir, err)
	}
	for {
		var status syscall.WaitStatus
		ended, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for %s: %w", argv[0], err)
		case ended != pid:
		case status.Signaled():
			return 128 + int(status.Signal()), nil // as a shell reports it
		default:
			return status.ExitStatus(), nil
		}
	}
}

// lookPath finds a program in the PATH of the command's environment; this process has none.
func lookPath(program string, env []string) (string, error) {
	if strings.Contains(program, "/") {
		return program, nil
	}
	for _, variable := range env {
		path, ok := strings.CutPrefix(variable, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			full := filepath.Join(dir, program)
			if info, err := os.Stat(full); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return full, nil
			}
		}
	}
	return "", fmt.Errorf("the guest has no program %s", program)
}
