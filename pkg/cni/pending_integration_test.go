//go:build integration

package cni_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/weft-cni/weft/pkg/cni"
)

// TestDelWithoutAgent: a DEL while no agent listens succeeds, and the next agent carries it out, also when the bridge
// cannot be written at first. The address is not allocated in between.
func TestDelWithoutAgent(t *testing.T) {
	n := newNode(t, "10.20.0.0/30") // one address for pods
	list := n.conf("1.1.0", "")
	p, stays := n.pod("old"), n.pod("new")
	n.mustAdd(list, p)
	check(t, n.stop())
	n.mustDel(list, p)
	n.mustDel(list, p) // runtimes repeat a DEL
	records := filepath.Join(filepath.Dir(n.socket), "deleted")
	files, err := os.ReadDir(records)
	check(t, err)
	if len(files) != 1 || len(n.attached()) != 1 {
		t.Fatalf("records %v, ports %v", files, n.attached())
	}
	if info, err := os.Stat(records); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("records: %v, %v", info.Mode(), err)
	}
	n.start()
	n.eventually("the DEL is made up for", func() bool { return len(n.attached()) == 0 && len(n.links()) == 0 })
	n.eventually("the record is gone",
		func() bool { files, err := os.ReadDir(records); return err == nil && len(files) == 0 })
	n.wantNothing()
	n.mustAdd(list, stays)
	_, err = n.add(list, p)
	wantCode(t, err, cni.ErrPoolExhausted, "10.20.0.0/30")
	n.mustDel(list, stays)
	n.wantNothing()
}
