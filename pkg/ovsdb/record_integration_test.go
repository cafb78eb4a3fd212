//go:build integration

package ovsdb_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestPodRecords: a changed record and a deleted one are rewritten from the agent's knowledge, in place: the port keeps
// its row, so its traffic continues.
func TestPodRecords(t *testing.T) {
	l := newLab(t)
	l.ensure()
	a := attachment(0)
	l.veth(a.HostIfName)
	l.add(a)
	l.vsctl("set", "Interface", "p0", "external_ids:others=stay")
	known := want
	known.Pods = map[string]model.Attachment{a.HostIfName: a, "absent": attachment(1)}
	if changed, err := l.c.EnsureBridge(l.ctx, known); err != nil || len(changed) > 0 {
		t.Fatalf("changed %q, error %v before any damage", changed, err)
	}
	right, row := l.config(), l.vsctl("get", "Interface", "p0", "_uuid")
	for what, command := range map[string]string{
		"number":     "set Interface p0 external_ids:weft.ofport=99",
		"addresses":  "set Interface p0 external_ids:weft.ips=10.244.0.99",
		"unreadable": "set Interface p0 external_ids:weft.mac=none",
		"pod":        "set Interface p0 external_ids:weft.pod=kube-system/other",
		"cleared": "remove Interface p0 external_ids weft.pod weft.pod-uid weft.container-id weft.if-name " +
			"weft.ofport weft.mac weft.ips",
		"pod's rate":   "set Interface p0 ingress_policing_rate=1 ingress_policing_burst=1",
		"gateway rate": "set Interface weft0 ingress_policing_rate=1",
	} {
		t.Run(what, func(t *testing.T) {
			l.drain()
			l.vsctl(append([]string{"--no-wait"}, strings.Fields(command)...)...)
			l.awaitChange(what)
			var changed []string
			l.within(2, "the damage is repaired", func() bool {
				var err error
				changed, err = l.c.EnsureBridge(l.ctx, known)
				return err == nil && len(changed) > 0
			})
			if now := l.config(); now != right {
				t.Errorf("%q left\n%s\nwant\n%s", changed, now, right)
			}
			if now := l.vsctl("get", "Interface", "p0", "_uuid"); now != row {
				t.Errorf("the port was recreated: %q", changed)
			}
			if rate := l.vsctl("get", "Interface", "p0", "ingress_policing_rate"); rate != "0" {
				t.Errorf("rate %s, want none", rate)
			}
		})
	}
}

// TestMirrors: Weft reports the mirrors of its bridge, and of no other.
func TestMirrors(t *testing.T) {
	l := newLab(t)
	l.ensure()
	l.drain()
	l.vsctl("--no-wait", "add-br", "br-other", "--", "--id=@n", "create", "Mirror", "name=other", "--", "add", "Bridge",
		"br-other", "mirrors", "@n",
		"--", "--id=@m", "create", "Mirror", "name=spy", "select_all=true", "--", "add", "Bridge", "weft", "mirrors", "@m")
	l.awaitChange("a mirror was made")
	l.eventually("the mirror is named", func() bool {
		names, err := l.c.Mirrors(l.ctx)
		return err == nil && slices.Equal(names, []string{"spy"})
	})
}
