package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Process names one process for as long as the machine runs: process ids are reused, a pair of id and start time is
// not.
type Process struct {
	PID int `json:"pid"`
	// Start is the time the process started, in clock ticks since boot.
	Start uint64 `json:"start"`
}

// FindProcess returns the process that has this id now.
func FindProcess(pid int) (Process, error) {
	start, _, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start}, nil
}

// Alive reports whether this very process still runs; a zombie does not.
func (p Process) Alive() bool {
	start, state, err := readStat(p.PID)
	return err == nil && start == p.Start && state != "Z" && state != "X"
}

// Signal sends sig unless the process is gone.
func (p Process) Signal(sig syscall.Signal) error {
	if !p.Alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

func readStat(pid int) (start uint64, state string, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", fmt.Errorf("find process %d: %w", pid, err)
	}
	return parseStat(string(data))
}

// parseStat reads proc(5)'s stat line; the command name in parentheses may hold spaces and parentheses itself.
func parseStat(line string) (start uint64, state string, err error) {
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	const stateField, startField = 0, 19 // 3 and 22 in proc(5), which counts the id and the name from 1
	if end < 0 || len(fields) <= startField {
		return 0, "", fmt.Errorf("unexpected process status %q", line)
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return 0, "", fmt.Errorf("unexpected process status %q: %w", line, err)
	}
	return start, fields[stateField], nil
}

func commandName(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "gone"
	}
	return strings.TrimSpace(string(data))
}

// Daemon is a process to start and leave running.
type Daemon struct {
	Args []string
	Log  string // receives standard output and error, appended
	Nice int    // its scheduling priority, as nice(1) has it, against all other processes
}

// OVSNice is the priority that ovs-ctl(8) gives Open vSwitch's daemons. Below it, the userspace datapath loses packets
// on a busy machine: its sockets hold some 200.
const OVSNice = -10

// Running is a process that this program started. Exited is closed when it has ended and been reaped.
type Running struct {
	Process
	Exited <-chan struct{}
}

// niced becomes a program of a priority. Where the kernel schedules sessions as groups (sched(7), autogroup), the
// priority of a process counts within its session only, and that of the session is set apart.
const niced = `nice=$1; shift; [ ! -e /proc/self/autogroup ] || echo "$nice" >/proc/self/autogroup; exec nice -n "$nice" "$@"`

// start runs the daemon behind a command prefix that brings it to its place. It is in its cgroup before it does
// anything, so that no crash of the caller can lose it.
func (d Daemon) start(enter []string) (Running, error) {
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return Running{}, fmt.Errorf("start %s: %w", d.Args[0], err)
	}
	defer log.Close()
	args := enter
	if d.Nice != 0 {
		args = append(args, "sh", "-c", niced, "sh", strconv.Itoa(d.Nice))
	}
	args = append(args, d.Args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	return start(cmd)
}

// start runs cmd in a session of its own, so that a Ctrl-C meant for the caller does not reach it.
func start(cmd *exec.Cmd) (Running, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return Running{}, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	proc, err := FindProcess(cmd.Process.Pid)
	exited := make(chan struct{})
	go func() {
		// A daemon's exit status says less than its log, to which callers of Exited point.
		_ = cmd.Wait()
		close(exited)
	}()
	if err != nil {
		return Running{}, err
	}
	return Running{Process: proc, Exited: exited}, nil
}
