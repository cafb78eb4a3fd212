//go:build integration

package cni_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-cni/weft/pkg/cni"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ovsdb"
)

// emptyDatabase replaces OVS' conf.db with an empty one.
func (n *node) emptyDatabase() {
	n.t.Helper()
	n.vsctl("del-br", model.BridgeName)
	n.eventually("the bridge is recreated", func() bool {
		changed, err := n.db.EnsureBridge(n.ctx, bridge)
		return err == nil && len(changed) > 0
	})
}

// TestCopiesRestore: records that OVSDB lost or that were changed while no agent ran are restored from the agent's
// copies, with the same ports and addresses, and no address is allocated twice.
func TestCopiesRestore(t *testing.T) {
	n := newNode(t, "10.20.0.0/29", "fd20::/64")
	list := n.conf("1.1.0", "")
	p := n.pod("old")
	n.mustAdd(list, p)
	att := n.attached()[0]
	file := filepath.Join(filepath.Dir(n.socket), "attachments", att.HostIfName+".json")
	info, err := os.Stat(file)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("copy has mode %v", info.Mode())
	}
	for what, damage := range map[string]func(){
		"empty database":  n.emptyDatabase,
		"changed address": func() { n.vsctl("set", "Interface", att.HostIfName, "external_ids:weft.ips=10.20.0.6") },
		"changed pod":     func() { n.vsctl("set", "Interface", att.HostIfName, "external_ids:weft.pod=kube-system/x") },
		"unreadable":      func() { n.vsctl("set", "Interface", att.HostIfName, "external_ids:weft.mac=x") },
		"cleared":         func() { n.vsctl("clear", "Interface", att.HostIfName, "external_ids") },
	} {
		t.Run(what, func(t *testing.T) {
			check(t, n.stop())
			damage()
			n.eventually("the damage is seen", func() bool {
				atts, _, err := n.db.Attachments(n.ctx)
				return err == nil && (len(atts) == 0 || !atts[0].Equal(att))
			})
			n.start()
			if len(n.kept) != 1 || !n.kept[0].Equal(att) {
				t.Fatalf("kept %+v, want %+v", n.kept, att)
			}
			known, err := n.server.Known()
			check(t, err)
			want := bridge
			want.Pods = known
			if _, err := n.db.EnsureBridge(n.ctx, want); err != nil {
				t.Fatal(err)
			}
			_, err = n.server.RestorePorts(n.ctx)
			check(t, err)
			if got := n.attached(); len(got) != 1 || !got[0].Equal(att) {
				t.Errorf("attached %+v, want %+v", got, att)
			}
			check(t, n.libcni.CheckNetworkList(n.ctx, list, p.rt))
			q := n.pod("new")
			if r := n.mustAdd(list, q); r.IPs[0].Address.IP.Equal(att.IPs[0].AsSlice()) {
				t.Errorf("address %v was given twice", att.IPs[0])
			}
			n.mustDel(list, q)
		})
	}
	n.mustDel(list, p)
	n.wantNothing()
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("after DEL the copy is still there: %v", err)
	}
}

// TestCopiesAreProven: a copy counts only for its own link, and a foreign port of a pod's name is never taken over.
func TestCopiesAreProven(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.1.0", "")
	p := n.pod("old")
	n.mustAdd(list, p)
	att := n.attached()[0]
	check(t, n.stop())
	n.emptyDatabase()
	file := filepath.Join(filepath.Dir(n.socket), "attachments", att.HostIfName+".json")
	good, err := os.ReadFile(file)
	check(t, err)
	for what, bad := range map[string]string{
		"other link": strings.Replace(string(good), `"hostMAC":"`, `"hostMAC":"00:`, 1),
		"version":    strings.Replace(string(good), `"version":1`, `"version":2`, 1),
		"cut":        string(good[:len(good)/2]),
		"endless":    string(good[:len(good)-2]) + strings.Repeat(" ", 1<<20) + "}\n",
	} {
		t.Run(what, func(t *testing.T) {
			check(t, os.WriteFile(file, []byte(bad), 0o600))
			n.start()
			if len(n.kept) != 0 || len(n.links()) != 1 {
				t.Errorf("kept %v, links %v; want an orphan", n.kept, n.links())
			}
			check(t, n.stop())
		})
	}
	n.start()
	n.mustDel(list, p)
	n.wantNothing()
}

// TestWatchLinks: the loss of a node's end is reported within two seconds, with the pod's name; the agent's own changes
// are not reported.
func TestWatchLinks(t *testing.T) {
	n := newNode(t, "10.20.0.0/24")
	list := n.conf("1.1.0", "")
	p, q := n.pod("web"), n.pod("other")
	n.mustAdd(list, p)
	att := n.attached()[0]
	hints := n.server.WatchLinks(n.ctx)
	<-hints
	n.mustAdd(list, q)
	n.mustDel(list, q)
	select {
	case <-hints:
		t.Error("ADD and DEL were taken for damage")
	case <-time.After(300 * time.Millisecond):
	}
	link, err := netlink.LinkByName(att.HostIfName)
	check(t, err)
	check(t, netlink.LinkSetNsFd(link, int(q.netns.Fd())))
	select {
	case <-hints:
	case <-time.After(2 * time.Second):
		t.Fatal("not noticed within 2 seconds")
	}
	if _, err := n.server.RestorePorts(n.ctx); err == nil || !strings.Contains(err.Error(), "default/web") ||
		!strings.Contains(err.Error(), "delete the pod") {
		t.Errorf("error %v, want one that names the pod and says what to do", err)
	}
	if known, err := n.server.Known(); err != nil || len(known) != 0 {
		t.Errorf("known %v, error %v: the link is not there", known, err)
	}
	n.mustDel(list, p)
}

var _ cni.Ports = (*ovsdb.Client)(nil)
