//go:build integration

package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/weft-cni/weft/build"
)

// The released image, built twice: the same bytes both times, and every program in it starts with nothing but the
// image's own files. It needs root for chroot, and the Debian packages of the programs.
func TestReleasedImage(t *testing.T) {
	first, second := buildImage(t, weft, "v0-test"), buildImage(t, weft, "v0-test")
	if !bytes.Equal(must(os.ReadFile(first)), must(os.ReadFile(second))) {
		t.Error("two builds of the same sources differ")
	}

	root := t.TempDir()
	c, err := collect(t.Context(), weft, t.TempDir(), build.Stamp{Version: "v0-test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range [][]file{c.system, c.own} {
		if err := writeDir(root, layer); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "usr/share/openvswitch/vswitch.ovsschema")); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		program string
		args    []string
		says    string
	}{
		{"/usr/bin/ovs-appctl", []string{"--version"}, "ovs-appctl (Open vSwitch)"},
		{"/usr/bin/ovs-ofctl", []string{"--version"}, "ovs-ofctl (Open vSwitch)"},
		{"/usr/bin/ovs-vsctl", []string{"--version"}, "ovs-vsctl (Open vSwitch)"},
		{"/usr/sbin/ovs-vswitchd", []string{"--version"}, "ovs-vswitchd (Open vSwitch)"},
		{"/usr/sbin/ovsdb-server", []string{"--version"}, "ovsdb-server (Open vSwitch)"},
		{"/usr/bin/ovsdb-tool", []string{"--version"}, "ovsdb-tool (Open vSwitch)"},
		{"/usr/sbin/nft", []string{"--version"}, "nftables v"},
		{"/usr/local/bin/weft-agent", []string{"--version"}, "v0-test"},
		{"/usr/local/bin/weftctl", []string{"--version"}, "v0-test"},
		{"/opt/weft/cni/weft-cni", nil, "CNI plugin weft-cni"},
		{"/opt/weft/cni/bandwidth", nil, "CNI bandwidth plugin"},
		{"/opt/weft/cni/loopback", nil, "CNI loopback plugin"},
		{"/opt/weft/cni/portmap", nil, "CNI portmap plugin"},
	} {
		t.Run(filepath.Base(tc.program), func(t *testing.T) {
			cmd := exec.Command(tc.program, tc.args...)
			cmd.Dir, cmd.Env = "/", []string{}
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
			out, err := cmd.CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte(tc.says)) {
				t.Errorf("%s %v in the image: %v: %s", tc.program, tc.args, err, out)
			}
		})
	}
}
