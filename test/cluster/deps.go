package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/weft-cni/weft/test/lab/datapath"
)

// debianProgram is a program, and the Debian package that brings it.
type debianProgram struct{ program, debian string }

// needed are the programs that the cluster runs.
var needed = []debianProgram{
	{"ovs-vswitchd", "openvswitch-switch"},
	{"ovsdb-server", "openvswitch-switch"},
	{"ovs-vsctl", "openvswitch-switch"},
	{"containerd", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"ip", "iproute2"},
	{"ethtool", "ethtool"},
	{"nsenter", "util-linux"},
	{"unshare", "util-linux"},
	{"mount", "mount"},
	{"nft", "nftables"},
	{"bash", "bash"},
	{"busybox", "busybox-static"},
	{"curl", "curl"},
	{"dig", "bind9-dnsutils"},
	{"getent", "libc-bin"},
	{"nc.openbsd", "netcat-openbsd"},
	{"nslookup", "bind9-dnsutils"},
	{"ping", "iputils-ping"},
	{"wget", "wget"},
	{"ldd", "libc-bin"},
}

// tested are programs that no cluster runs, and tests need besides. The largest is last.
var tested = []debianProgram{{"dnsmasq", "dnsmasq-base"}, {"chromium", "chromium"}}

// missingPackages returns the Debian packages of the programs that lookPath does not find.
func missingPackages(lookPath func(string) (string, error), programs ...debianProgram) []string {
	var missing []string
	for _, n := range programs {
		if _, err := lookPath(n.program); err != nil && !slices.Contains(missing, n.debian) {
			missing = append(missing, n.debian)
		}
	}
	return missing
}

func checkMachine(d datapath.Datapath) error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root: it makes namespaces, cgroups and network devices")
	}
	if missing := missingPackages(exec.LookPath, needed...); len(missing) > 0 {
		return fmt.Errorf("programs are missing; install them with `apt-get install %s` or `make deps`",
			strings.Join(missing, " "))
	}
	return d.Available()
}

// policyFile, while it exists, keeps package installation scripts from starting services.
const (
	policyFile = "/usr/sbin/policy-rc.d"
	policyText = "#!/bin/sh\n# Put here by Weft's test/cluster while it installs packages: start no service.\nexit 101\n"
)

// installPackages installs what is missing. The packages' system services are not needed, every node runs its own, so
// they are not started.
func installPackages(ctx context.Context, p *progress) error {
	all := slices.Concat(needed, tested)
	missing := missingPackages(exec.LookPath, all...)
	if len(missing) == 0 {
		p.print("All needed Debian packages are installed.")
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("installing %s needs root", strings.Join(missing, " "))
	}
	p.print("Installing Debian packages: " + strings.Join(missing, " "))
	restore, err := forbidServices(policyFile)
	if err != nil {
		return err
	}
	err = errors.Join(apt(ctx, "update"), apt(ctx, append([]string{"install", "--yes", "--no-install-recommends"},
		missing...)...))
	if err := errors.Join(err, restore()); err != nil {
		return err
	}
	if still := missingPackages(exec.LookPath, all...); len(still) > 0 {
		return fmt.Errorf("still missing after installation: %s", strings.Join(still, " "))
	}
	return nil
}

// forbidServices puts the policy in place, unless the machine has one of its own, and returns how to take it away.
func forbidServices(path string) (restore func() error, err error) {
	have, err := os.ReadFile(path)
	if err == nil && string(have) != policyText {
		return func() error { return nil }, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("keep services from starting: %w", err)
	}
	if err := os.WriteFile(path, []byte(policyText), 0o755); err != nil {
		return nil, fmt.Errorf("keep services from starting: %w", err)
	}
	return func() error { return os.Remove(path) }, nil
}

func apt(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
