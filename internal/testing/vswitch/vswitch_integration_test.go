//go:build integration

package vswitch_test

import (
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/testing/vswitch"
)

func TestStartStop(t *testing.T) {
	dir := t.TempDir()
	ovs, err := vswitch.Start(t.Context(), vswitch.Config{RunDir: dir + "/run", DataDir: dir + "/data"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ovs.Run(t.Context(), "ovs-vsctl", "add-br", "vsw-test0", "--", "set", "bridge", "vsw-test0",
		"datapath_type=netdev"); err != nil {
		t.Fatal(err)
	}
	if out, err := ovs.Run(t.Context(), "ovs-ofctl", "show", "vsw-test0"); err != nil || !strings.Contains(out, "LOCAL") {
		t.Errorf("ovs-ofctl show = %q, %v; want the bridge's LOCAL port", out, err)
	}
	if err := ovs.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := ovs.StartDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err := ovs.Run(t.Context(), "ovs-vsctl", "get", "Open_vSwitch", ".", "cur_cfg")
	if err != nil || strings.TrimSpace(out) == "0" {
		t.Errorf("cur_cfg = %q, %v; want a configuration that was applied", out, err)
	}
	if _, err := ovs.Run(t.Context(), "ovs-vsctl", "del-br", "vsw-test0"); err != nil {
		t.Error(err)
	}
	if err := ovs.Stop(); err != nil {
		t.Fatal(err)
	}
	if pids := ovs.PIDs(); len(pids) != 0 {
		t.Errorf("daemons still recorded after Stop: %v", pids)
	}
}
