//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	// stoppedWithin bounds the time from an edit until what it denies has stopped.
	stoppedWithin = time.Second
	// neighborEvery is the time between two datagrams of an allowed neighbor.
	neighborEvery = time.Millisecond
)

// talk connects a client to a server and has both send all the while.
func (c *client) talk(t *testing.T, l *listeners, proto podns.Proto, to netip.AddrPort) []*stream {
	t.Helper()
	name := fmt.Sprintf("%s of %s with %s", proto, c.name, to)
	there, back := newStream(name+", from the client", proto), newStream(name+", from the server", proto)
	testenv.Eventually(t, 10*time.Second, func() (err error) {
		there.sending, there.receiving, err = c.meet(l, proto, to)
		return err
	})
	back.sending, back.receiving = there.receiving, there.sending
	there.start(t)
	back.start(t)
	return []*stream{there, back}
}

// tell connects a client to a server and has the client send, which never hears anything.
func (c *client) tell(t *testing.T, l *listeners, every time.Duration, to netip.AddrPort) *stream {
	t.Helper()
	s := newStream(fmt.Sprintf("datagrams of %s to %s", c.name, to), podns.UDP)
	s.every = every
	testenv.Eventually(t, 10*time.Second, func() (err error) {
		s.sending, s.receiving, err = c.meet(l, podns.UDP, to)
		return err
	})
	s.start(t)
	return s
}

// stops waits until nothing comes through a stream any more, although its sender goes on, and says how long after the
// edit the last came.
func (s *stream) stops(t *testing.T, what string, edit time.Time) {
	t.Helper()
	var last time.Time
	testenv.Eventually(t, 10*time.Second, func() error {
		last = s.last()
		// A TCP stream that is stopped cannot write any more.
		if s.proto == podns.UDP && s.sentAfter(last) < quietRounds || time.Since(last) < quietFor {
			return fmt.Errorf("%s: %s does not stop: the last one came %s after the edit", what, s.name, last.Sub(edit))
		}
		return nil
	})
	if took := last.Sub(edit); took > testenv.Patience(stoppedWithin) {
		t.Errorf("%s: %s stopped %s after the edit, want at most %s", what, s.name, took, testenv.Patience(stoppedWithin))
	}
}

// sentAfter counts what was sent after a time.
func (s *stream) sentAfter(at time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.sent) - 1; i >= 0 && s.sent[i].at.After(at); i-- {
		n++
	}
	return n
}

// An edit of a policy, of either end, stops what is established and not allowed any more: TCP both ways, UDP both
// ways, and UDP without answers. When it is allowed again the same connections go on. A neighbor that is allowed
// all the while loses nothing.
func TestPolicyEditStopsEstablished(t *testing.T) {
	const ns = "estab"
	ingress := func(peers string) string {
		return policyManifest(ns, "in",
			fmt.Sprintf("podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{from: [%s{podSelector: "+
				"{matchLabels: {app: neighbor}}}]}]", peers))
	}
	egress := func(peers string) string {
		return policyManifest(ns, "out",
			fmt.Sprintf("podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [%s{podSelector: "+
				"{matchLabels: {app: neighbor}}}]}]", peers))
	}
	const client, server = "{podSelector: {matchLabels: {app: client}}}, ", "{podSelector: {matchLabels: {app: server}}}, "
	w := upWalled(t, "estab", map[string]string{
		"pods.yaml": walledPod(ns, "near", "node1", "app: server") + walledPod(ns, "far", "node2", "app: server") +
			walledPod(ns, "client", "node1", "app: client") + walledPod(ns, "neighbor", "node1", "app: neighbor"),
		"in.yaml": ingress(client), "out.yaml": egress(server),
	})
	from, neighbor := w.pod(t, ns+"/client"), w.pod(t, ns+"/neighbor")
	var edited, neighbors []*stream
	for _, name := range []string{"near", "far"} {
		to := w.pod(t, ns+"/"+name)
		l := to.serve(t, streamPort)
		for _, ip := range to.ips {
			at := netip.AddrPortFrom(ip, streamPort)
			edited = append(edited, from.talk(t, l, podns.TCP, at)...)
			edited = append(edited, from.talk(t, l, podns.UDP, at)...)
			edited = append(edited, from.tell(t, l, streamEvery, at))
			neighbors = append(neighbors, neighbor.tell(t, l, neighborEvery, at))
		}
	}
	begin := time.Now()
	allFlow(t, "before the edits", append(neighbors, edited...))
	for _, end := range []struct {
		what, file, denied, allowed string
	}{
		{"ingress of the servers", "in.yaml", ingress(""), ingress(client)},
		{"egress of the client", "out.yaml", egress(""), egress(server)},
	} {
		edit := w.write(t, end.file, end.denied)
		longest := time.Duration(0)
		for _, s := range edited {
			s.stops(t, end.what, edit)
			longest = max(longest, s.last().Sub(edit))
		}
		t.Logf("%s: all %d stopped within %s of the edit", end.what, len(edited), longest.Round(time.Millisecond))
		w.write(t, end.file, end.allowed)
		allFlow(t, end.what+", allowed again", edited)
	}
	allFlow(t, "after the edits", neighbors)
	w.nothingLost(t, begin, neighbors)
	if problem := w.Status().Problem; problem != "" {
		t.Error(problem)
	}
}
