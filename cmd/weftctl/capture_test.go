package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/pkg/capture"
)

// syn is the frame of a connection's first packet from 10.0.0.2:40000 to 10.0.0.3:80.
func syn() []byte {
	b := make([]byte, 54)
	binary.BigEndian.PutUint16(b[12:], 0x0800)
	ip := b[14:]
	ip[0], ip[3], ip[9] = 0x45, 40, 6
	copy(ip[12:], []byte{10, 0, 0, 2, 10, 0, 0, 3})
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], 80)
	ip[32], ip[33] = 0x50, 2
	return b
}

// at is when the packets of tests were seen.
var at = time.Date(2026, 11, 30, 8, 0, 0, 123456000, time.Local)

// records are what an agent sends of two packets.
func records(lost uint64, end capture.End) []capture.Record {
	packet := capture.Packet{Time: at, Length: 54, Data: syn()}
	to := packet
	to.To = true
	return []capture.Record{
		{Ports: []capture.Port{{Name: "shop/web", Link: "web-1"}}},
		{Name: &capture.Name{Addr: netip.MustParseAddr("10.0.0.3"), Name: "shop/web"}},
		{Packet: &packet}, {Packet: &to}, {Lost: lost}, {End: &end},
	}
}

// sending is an agent that sends records, and keeps the request. Without an end, it waits for the client's.
func sending(t *testing.T, list []capture.Record, request *capture.Request) string {
	t.Helper()
	return onSocket(t, func(w http.ResponseWriter, r *http.Request) {
		*request = capture.Request{}
		if err := json.NewDecoder(r.Body).Decode(request); err != nil || r.URL.Path != "/v1/capture" {
			t.Errorf("%s: %v", r.URL, err)
		}
		encoder := json.NewEncoder(w)
		for _, one := range list {
			if err := encoder.Encode(one); err != nil {
				t.Error(err)
			}
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		if list[len(list)-1].End == nil {
			<-r.Context().Done()
		}
	})
}

// run runs weftctl and returns also what it wrote on the standard error.
func run(socket string, args ...string) (out, errs string, err error) {
	var o, e bytes.Buffer
	root := newRoot()
	root.SetOut(&o)
	root.SetErr(&e)
	root.SetArgs(append([]string{"--socket", socket}, args...))
	err = root.Execute()
	return o.String(), e.String(), err
}

// TestCaptureLines: a line for each packet with names; what was lost and why it ended on the standard error.
func TestCaptureLines(t *testing.T) {
	var request capture.Request
	socket := sending(t, records(7, capture.End{Reason: "2 packets were captured"}), &request)
	out, errs, err := run(socket, "capture", "pod/shop/web", "--peer", "svc/shop/db", "--protocol", "tcp", "--port", "80", "-c", "2")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out, `
08:00:00.123456  from shop/web  10.0.0.2:40000 > shop/web:80  TCP SYN
08:00:00.123456  to   shop/web  10.0.0.2:40000 > shop/web:80  TCP SYN
`)
	wantText(t, errs, `
capturing at shop/web (web-1)
ended: 2 packets were captured
2 packets, 7 lost because they came too fast
`)
	want := capture.Request{Kind: "pod", At: "shop/web", PeerKind: "service", Peer: "shop/db", Protocol: "TCP", Port: 80, Packets: 2,
		SnapLen: lineSnapLen, Bytes: capture.DefaultBytes, Time: capture.DefaultTime}
	if request != want {
		t.Errorf("request %+v, want %+v", request, want)
	}
	if out, _, err = run(socket, "capture", "web", "-n", "shop", "--peer=10.0.0.0/8", "-o", "json"); err != nil {
		t.Fatal(err)
	}
	var first packetLine
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&first); err != nil || first.At != "shop/web" || first.To ||
		first.Source != "10.0.0.2:40000" || first.DestinationName != "shop/web:80" || first.Info != "TCP SYN" || first.Length != 54 {
		t.Errorf("%v %+v", err, first)
	}
	if request.At != "shop/web" || request.Kind != "" || request.Peer != "10.0.0.0/8" {
		t.Errorf("request %+v", request)
	}
}

// TestCaptureFile: -w writes pcapng with whole packets, to a file that others cannot read, or to the standard output.
func TestCaptureFile(t *testing.T) {
	var request capture.Request
	socket := sending(t, records(7, capture.End{Reason: "enough"}), &request)
	file := filepath.Join(t.TempDir(), "web.pcapng")
	if _, _, err := run(socket, "capture", "tunnel", "-w", file); err != nil {
		t.Fatal(err)
	}
	if request.SnapLen != 0 || request.At != capture.AtTunnel || request.Kind != "" {
		t.Errorf("request %+v", request)
	}
	text, err := os.ReadFile(file)
	if err != nil || bytes.Count(text, syn()) != 2 || !bytes.Contains(text, []byte("web-1")) {
		t.Errorf("%v: %d packets in %q", err, bytes.Count(text, syn()), text)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	// The time of the loss is that of writing.
	out, _, err := run(socket, "capture", "gateway", "-w", "-", "--snaplen", "200")
	if err != nil || len(out) != len(text) || !strings.HasPrefix(out, "\x0a\x0d\x0d\x0a") {
		t.Errorf("%v: %d bytes, in the file %d", err, len(out), len(text))
	}
	if request.SnapLen != 200 {
		t.Errorf("request %+v", request)
	}
}

// TestCaptureEnds: the user's end is none that failed; the agent's own failure is, and so are mistakes.
func TestCaptureEnds(t *testing.T) {
	var request capture.Request
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out := &screens{end: cancel, enough: func(s string) bool { return strings.Count(s, "\n") == 2 }}
	var errs bytes.Buffer
	root := newRoot()
	root.SetOut(out)
	root.SetErr(&errs)
	root.SetArgs([]string{"--socket", sending(t, records(0, capture.End{})[:4], &request), "capture", "shop/web"})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Error(err)
	}
	wantText(t, errs.String(), "capturing at shop/web (web-1)\n2 packets, 0 lost because they came too fast\n")

	failing := sending(t, records(0, capture.End{Reason: "the network device was removed or is down", Failed: true}), &request)
	_, text, err := run(failing, "capture", "shop/web")
	wantCode(t, err, cli.CannotAsk)
	if !strings.Contains(text, "ended: the network device was removed or is down\n") {
		t.Errorf("%q", text)
	}
	bad := sending(t, []capture.Record{{Ports: []capture.Port{{Name: "x"}}}, {Packet: &capture.Packet{Port: 1}},
		{End: &capture.End{}}}, &request)
	for _, tc := range []struct {
		socket, args, want string
	}{
		{bad, "shop/web", "the agent sent a packet of port 1, and told of 1 ports"},
		{bad, "shop/web --protocol arp", `capture: protocol "ARP": want TCP, UDP, SCTP, ICMP`},
		{bad, "shop/web --count=-1 --time=2h", "number of packets -1: want 1 to 1000000; time in milliseconds 7200000: want 1 to 3600000"},
		{bad, "shop/web -o wide", "-o wide is not known; allowed: table, json, yaml"},
		{bad, "shop/web -w /nonexistent/file", "open /nonexistent/file: no such file or directory"},
		{bad, "", "accepts 1 arg(s), received 0"},
		{serve(t, nil), "shop/web", "the agent says: the agent has not programmed the switch yet"},
	} {
		_, _, err := run(tc.socket, append([]string{"capture"}, strings.Fields(tc.args)...)...)
		wantCode(t, err, cli.CannotAsk)
		if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.args, err, tc.want)
		}
	}
}

// TestCaptureCluster: a pod is captured on its node, other places on all or those that are named, with the node's name
// before each line.
func TestCaptureCluster(t *testing.T) {
	dir := clusterOf(t, map[string]map[string]any{"node1": {}, "node2": {}, "node3": nil})
	for _, node := range []string{"node1", "node2"} {
		var request capture.Request
		link := filepath.Join(dir, "agent-"+node+".sock")
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(sending(t, records(0, capture.End{Reason: "enough"}), &request), link); err != nil {
			t.Fatal(err)
		}
	}
	out, errs, err := plugin("capture", "shop/web")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out, "08:00:00.123456  from shop/web  ") ||
		!strings.Contains(errs, "capturing at shop/web (web-1) on node2\n") ||
		!strings.Contains(errs, "ended: node node2: enough\n2 packets") {
		t.Errorf("%s%s", out, errs)
	}
	out, errs, err = plugin("capture", "gateway", "--node=node1,node2")
	if err != nil || strings.Count(out, "from node1 shop/web") != 1 || strings.Count(out, "from node2 shop/web") != 1 ||
		!strings.Contains(errs, "\n4 packets") {
		t.Errorf("%v\n%s%s", err, out, errs)
	}
	for args, want := range map[string]string{
		"capture gateway":       "node node3: pod agent-node3: ImagePullBackOff: no such image",
		"capture pod/shop/none": "pod shop/none not found on a node",
	} {
		_, _, err := plugin(strings.Fields(args)...)
		wantCode(t, err, cli.CannotAsk)
		if err.Error() != want {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}
