//go:build e2e

package main

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/test/cluster/state"
)

// The tour ends well on a real cluster, twice in a row, and shows what it promises.
func TestTour(t *testing.T) {
	record, err := state.Load(cmp.Or(os.Getenv("WEFT_CLUSTER_DIR"), filepath.Join("..", "..", ".cluster")))
	if err != nil {
		t.Fatal(err)
	}
	kube := kubectl{program: record.Kubectl(), kubeconfig: record.Kubeconfig()}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := kube.run(ctx, "", "delete", "namespace", namespace, "--wait"); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		var out bytes.Buffer
		v := tour{kube: kube, out: &printer{out: &out}, record: record}
		if err := v.run(t.Context()); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		for _, want := range []string{"packet loss", "pod/demo/client", "table=Forwarding", "goto_table:Commit", "+10",
			"delete namespace demo"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the tour does not show %q:\n%s", want, out.String())
			}
		}
	}
}
