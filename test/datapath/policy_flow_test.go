//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	streamPort = 9100
	// stopsWithin is how long a connection may go on that a changed policy forbids, from the edit of the manifest on.
	stopsWithin = time.Second
	// watched is how long a stopped stream is watched for what must not come.
	watched = 500 * time.Millisecond
)

const (
	wallForFriends = "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: " +
		"friend}}}]}]"
	wallForAll = "podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {}}]}]"
	cage       = "podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]"
)

// A policy that is added while connections are open stops the denied ones within a second, in every direction: TCP and
// UDP, the client sending, the server sending to a silent client, to the pod itself and through a Service, on the same
// node and across nodes, in both families, by the server's ingress and by the client's egress. Allowed streams lose no
// datagram. With establishedConnections: keep all streams continue.
func TestPolicyStopsEstablished(t *testing.T) {
	base := walledPod("mid", "server", "node1", "app: server, role: busy") + walledPod("mid", "quiet", "node1",
		"app: server, role: quiet") + walledPod("mid", "near", "node1", "app: client") + walledPod(
		"mid", "far", "node2", "app: client") +
		walledPod("mid", "friend-near", "node1", "app: friend") + walledPod("mid", "friend-far", "node2", "app: friend") +
		walledService("mid", "server", "role: busy", streamPort) + walledService("mid", "quiet", "role: quiet", streamPort)
	w := upWalled(t, "polmid", map[string]string{"base.yaml": base})
	streams := func(service string, names ...string) (all []*stream) {
		server := w.pod(t, service)
		l, vips := server.serve(t, streamPort), w.serviceIPs(t, "mid", service)
		for _, name := range names {
			from := w.pod(t, name)
			for _, v4 := range []bool{true, false} {
				for kind, to := range map[string]netip.AddrPort{"itself": netip.AddrPortFrom(server.addr(v4), streamPort),
					"Service": netip.AddrPortFrom(of(vips, v4), 80)} {
					for _, proto := range []podns.Proto{podns.TCP, podns.UDP} {
						if strings.HasPrefix(name, "friend") && proto == podns.TCP && !v4 {
							continue // the machine has only so much time
						}
						for _, fromServer := range []bool{false, true} {
							who := "client"
							if fromServer {
								who = "server"
							}
							all = append(all, from.streamTo(t, server, l, proto, to, fromServer,
								fmt.Sprintf("%s to %s by %s, %s, the %s sends", proto, kind, name, familyName(v4), who)))
						}
					}
				}
			}
		}
		return all
	}
	// Their connections go to a pod of their own: those that begin again fill the short queue of the other's port at once.
	theirs, friends := streams("server", "near", "far"), streams("quiet", "friend-near", "friend-far")
	allFlow(t, "without a policy", append(theirs, friends...))
	stop := func(what string, edit time.Time) {
		t.Helper()
		time.Sleep(time.Until(edit.Add(testenv.Patience(stopsWithin))))
		from := time.Now()
		time.Sleep(watched)
		var longest time.Duration
		for _, s := range theirs {
			if n := s.after(from); n > 0 {
				t.Errorf("%s: %s: %d messages came more than %s after the edit", what, s.name, n, testenv.Patience(stopsWithin))
			}
			longest = max(longest, s.last().Sub(edit))
		}
		t.Logf("%s: all %d streams had stopped %s after the edit", what, len(theirs), longest.Round(time.Millisecond))
	}
	begin := time.Now()

	stop("a wall is added", w.write(t, "policy.yaml", policyManifest("mid", "wall", wallForFriends)))
	w.write(t, "policy.yaml", policyManifest("mid", "wall", wallForAll))
	allFlow(t, "the wall lets everybody in", theirs)
	stop("a cage is added", w.write(t, "policy.yaml", policyManifest("mid", "wall", wallForAll), policyManifest("mid",
		"cage", cage)))
	w.write(t, "policy.yaml", policyManifest("mid", "wall", wallForAll))
	allFlow(t, "the cage is removed", theirs)

	w.configure(t, "establishedConnections: keep")
	w.write(t, "policy.yaml", policyManifest("mid", "wall", wallForFriends), policyManifest("mid", "cage", cage))
	w.enforces(t, "node1", "mid", "wall", "cage")
	w.enforces(t, "node2", "mid", "cage")
	// A client without an answer has no established connection, so policies are evaluated.
	allFlow(t, "established connections are kept", slices.DeleteFunc(slices.Clone(theirs), func(s *stream) bool {
		return !s.answered
	}))
	if answer, err := w.pod(t, "far").outcome(podns.TCP, netip.AddrPortFrom(w.pod(t, "server").addr(true), 8080),
		time.Second); err != nil || answer.Outcome != podns.Silent {
		t.Errorf("a new connection while established ones are kept: %s, %v", answer.Outcome, err)
	}
	w.configure(t, "")
	allFlow(t, "friends, at last", friends)
	from := time.Now()
	time.Sleep(watched)
	for _, s := range theirs {
		if n := s.after(from); n > 0 {
			t.Errorf("%s: %d messages came after established connections were no longer kept", s.name, n)
		}
	}
	w.nothingLost(t, begin, friends)
}

// configure makes a line the end of every agent's configuration, and returns when it is true in the switch.
func (w *walled) configure(t *testing.T, line string) {
	t.Helper()
	keep := line != ""
	for _, n := range w.Status().Nodes {
		file := n.Files + "/run/weft/config.yaml"
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text, _, _ := strings.Cut(string(old), "establishedConnections")
		if err := os.WriteFile(file+".next", []byte(text+line), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".next", file); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range w.Status().Nodes {
		testenv.Eventually(t, 20*time.Second, func() error {
			flows := w.Run("node/"+n.Name, "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "weft",
				"table=30,ct_state=+trk-rel+est,ct_mark=0x1/0x1")
			if has := strings.Contains(flows, "goto_table:60"); has != keep {
				return fmt.Errorf("the switch of %s lets established connections pass: %t", n.Name, has)
			}
			return nil
		})
	}
}
