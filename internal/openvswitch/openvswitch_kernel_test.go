//go:build kernel

package openvswitch

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestKernelForwardsMeanwhile: the kernel loads its modules for ovs-vswitchd, which may not load any. What the kernel's
// datapath forwards, it forwards while Open vSwitch ends and starts again, and while the new ovs-vswitchd waits for the
// flows, which its database does not have.
func TestKernelForwardsMeanwhile(t *testing.T) {
	command := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		}
	}
	command("modprobe", "-r", "vport-geneve", "vport-vxlan", "vport-gre", "openvswitch")
	o := options(t)
	first := run(t, o)
	if _, err := os.Stat("/sys/module/openvswitch"); err != nil {
		t.Fatalf("the kernel has not loaded its module: %v", err)
	}
	first.vsctl(t, "add-br", "weft", "--", "set", "Bridge", "weft", "datapath_type=system", "fail_mode=secure")
	t.Cleanup(func() { _ = exec.Command("ovs-dpctl", "del-dp", "ovs-system").Run() })
	hosts := []struct{ name, addr, mac string }{
		{"ka", "192.0.2.1", "02:00:00:00:00:0a"}, {"kb", "192.0.2.2", "02:00:00:00:00:0b"},
	}
	for i, h := range hosts {
		peer := hosts[1-i]
		command("ip", "netns", "add", h.name)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", h.name).Run() })
		command("ip", "link", "add", h.name, "type", "veth", "peer", "name", "eth0", "address", h.mac, "netns", h.name)
		command("ip", "link", "set", h.name, "up")
		command("ip", "-n", h.name, "addr", "add", h.addr+"/24", "dev", "eth0")
		command("ip", "-n", h.name, "link", "set", "eth0", "up")
		command("ip", "-n", h.name, "neigh", "add", peer.addr, "lladdr", peer.mac, "dev", "eth0", "nud", "permanent")
		first.vsctl(t, "add-port", "weft", h.name)
	}
	flows := func() {
		t.Helper()
		for i, h := range hosts {
			if _, err := o.output(t.Context(), "ovs-ofctl", "add-flow", "weft",
				"in_port="+h.name+",actions=output:"+hosts[1-i].name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := o.output(t.Context(), "ovs-vsctl", "--db=unix:"+o.socket(), "--timeout=60", "set", "Open_vSwitch", ".",
		"external_ids:applied=yes"); err != nil {
		t.Fatal(err)
	}
	flows()

	ping := exec.Command("ip", "netns", "exec", hosts[0].name, "ping", "-n", "-i", "0.05", "-W", "5", hosts[1].addr)
	out, err := ping.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ping.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ping.Process.Kill() })
	lines, next := bufio.NewScanner(out), 1
	answers := func(count int) {
		t.Helper()
		for seen := 0; seen < count && lines.Scan(); {
			_, rest, ok := strings.Cut(lines.Text(), "icmp_seq=")
			if !ok {
				continue
			}
			var seq int
			if _, err := fmt.Sscan(rest, &seq); err != nil || seq != next {
				t.Errorf("after answer %d comes %q: %v", next-1, lines.Text(), err)
			}
			next = seq + 1
			seen++
		}
	}
	answers(20)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second := run(t, o)
	if dump, err := o.output(t.Context(), "ovs-ofctl", "dump-flows", "weft"); err != nil || strings.Contains(dump, "in_port") {
		t.Fatalf("the new switch has flows from before: %v\n%s", err, dump)
	}
	answers(60) // more than were sent meanwhile
	flows()
	second.vsctl(t, "remove", "Open_vSwitch", ".", "other_config", restoreWait)
	answers(40)
	if next <= 120 {
		t.Errorf("ping ended after %d answers", next-1)
	}
	t.Logf("%d pings in a row were answered", next-1)
}
