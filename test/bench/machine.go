package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/test/bench/result"
)

// machine describes where the program runs. What the system does not say is "unknown".
func machine() result.Machine {
	m := result.Machine{Processor: valueOf("/proc/cpuinfo", "model name", ":"), Processors: runtime.NumCPU(),
		System: strings.Trim(valueOf("/etc/os-release", "PRETTY_NAME", "="), `"`)}
	fields := strings.Fields(valueOf("/proc/meminfo", "MemTotal", ":"))
	if kilobytes, err := strconv.Atoi(fields[0]); err == nil {
		m.MemoryMB = kilobytes / 1024
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return m
}

// valueOf is the first value of a key in a file of lines.
func valueOf(file, key, separator string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(line, separator)
		if ok && strings.TrimSpace(name) == key && strings.TrimSpace(value) != "" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// versions are those of what runs here, and of the programs in a directory.
func versions(ctx context.Context, programs string) (result.Versions, error) {
	out, err := exec.CommandContext(ctx, "ovs-vswitchd", "--version").Output()
	if err != nil {
		return result.Versions{}, fmt.Errorf("ask Open vSwitch for its version (apt-get install openvswitch-switch): %w", err)
	}
	commit, err := os.ReadFile(filepath.Join(programs, commitFile))
	if err != nil {
		return result.Versions{}, fmt.Errorf("--programs has to be a directory of bench build: %w", err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	fields := strings.Fields(first)
	return result.Versions{Weft: string(commit), OpenVSwitch: fields[len(fields)-1], Go: runtime.Version()}, nil
}

// load is the machine's load average of the last minute, or -1 when it does not say.
func load() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return -1
	}
	first, _, _ := strings.Cut(string(text), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return -1
	}
	return v
}
