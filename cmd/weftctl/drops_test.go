package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
)

// counting is an agent whose flows, Services and policies count more with each question.
func counting(t *testing.T) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Uint64
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		stats := func(each uint64) openflow.Stats { return openflow.Stats{Packets: each * n, Bytes: 100 * each * n} }
		var v any
		switch r.URL.Path {
		case "/v1/flows":
			v = []report.Flow{
				{Table: "Classifier", Match: "in_port=web", Owner: "pod/shop/web", Stats: stats(5)},
				{Table: "Classifier", Match: "in_port=db", Owner: "pod/bank/db", Stats: stats(50)},
				{Table: "Classifier", Match: "in_port=idle", Owner: "pod/shop/idle"},
				{Table: "SpoofGuard", TableID: 10, Match: "in_port=web", Owner: "pod/shop/web", Reason: flows.SpoofedIP,
					Stats: stats(3)},
				{Table: "SpoofGuard", TableID: 10, Match: "multicast", Owner: "pipeline", Reason: flows.Multicast, Stats: stats(9)},
				{Table: "Forwarding", TableID: 60, Owner: "pipeline", Reason: flows.NoRoute},
			}
		case "/v1/services":
			v = []report.Service{{Service: "shop/web", Frontends: []report.Frontend{
				{Address: "10.96.0.80:80", Protocol: "TCP", Stats: stats(2)}}}}
		case "/v1/policies":
			v = []report.Policy{{Policy: "shop/p", Rules: []report.Rule{{Direction: "Ingress", Rule: "denied",
				Stats: stats(7)}}}}
		}
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	})}
	go func() { _ = server.Serve(listener) }() // it ends with an error when the test closes it
	t.Cleanup(func() { _ = server.Close() })
	return socket
}

// TestDrops: flows that have dropped, most packets first, without what is harmless.
func TestDrops(t *testing.T) {
	socket := counting(t)
	out, err := weftctl(socket, "drops")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out, `
NODE  REASON      PACKETS  BYTES  OWNER         MATCH
-     spoofed-ip  3        300    pod/shop/web  in_port=web
`)
	if out, err = weftctl(socket, "drops", "--all", "-o", "json"); err != nil ||
		!strings.Contains(out, `"reason": "multicast"`) {
		t.Errorf("--all: %v\n%s", err, out)
	}
	if out, err := weftctl(serve(t, map[string]any{"/v1/flows": []report.Flow{}}), "drops"); err != nil ||
		out != "No flow has dropped a packet.\n" {
		t.Errorf("none: %v %q", err, out)
	}
}

// TestFollowDrops: each line is what a flow has dropped since the last reading.
func TestFollowDrops(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := &screens{end: cancel, enough: func(s string) bool { return strings.Count(s, "\n") >= 2 }}
	root := newRoot()
	root.SetOut(out)
	root.SetArgs([]string{"--socket", counting(t), "drops", "-f", "--interval", "1ms", "-o", "json"})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.text.String()) {
		var d drop
		if err := json.Unmarshal([]byte(line), &d); err != nil || d.Packets != 3 || d.Bytes != 300 ||
			d.Owner != "pod/shop/web" {
			t.Errorf("%v %q", err, line)
		}
	}
}

// TestTop: what counted most between two readings comes first; what did not count is not there.
func TestTop(t *testing.T) {
	for args, want := range map[string]string{
		"top pods": "NODE  NAME      PACKETS/S  KBIT/S\n-     bank/db   500.0      400.0\n" +
			"-     shop/web  50.0       40.0\n",
		"top pods -n shop": "NODE  NAME      PACKETS/S  KBIT/S\n-     shop/web  50.0       40.0\n",
		"top services": "NODE  NAME                        PACKETS/S  KBIT/S\n" +
			"-     shop/web 10.96.0.80:80/TCP  20.0       16.0\n",
		"top policies":      "NODE  NAME                   PACKETS/S  KBIT/S\n-     shop/p Ingress denied  70.0       56.0\n",
		"top pods --most 0": "Of pods, nothing was counted within 100ms.\n",
	} {
		out, err := weftctl(counting(t), append(strings.Fields(args), "--interval", "100ms")...)
		if err != nil || out != want {
			t.Errorf("%s: %v\n%s\nwant\n%s", args, err, out, want)
		}
	}
	_, err := weftctl(counting(t), "top", "nodes")
	wantCode(t, err, cli.CannotAsk)
	_, err = weftctl(counting(t), "top", "pods", "--interval", "0s")
	wantCode(t, err, cli.CannotAsk)
}
