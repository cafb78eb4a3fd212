//go:build integration

package datapath

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	synRounds = 6
	synPause  = 40 * time.Millisecond
	// friendPorts is how far apart the ports are that one of the friends' connections has; there are fewer connections
	// than that.
	friendPorts = 1000
)

// handshake is a TCP connection that both ends try to make with frames of their own, whatever the other hears.
type handshake struct {
	name           string
	client, server *client
	// at is where the client sends: the server or a Service in front of it.
	at netip.AddrPort
	// own is the server's side, and port the client's.
	own  netip.AddrPort
	port uint16
}

// A SYN that is denied stays denied when it is repeated: to the pod itself and through a Service, which has committed
// the connection for its address translation before the policies judge; whether the server's ingress or the client's
// egress forbids it; and also when the server answers it, as one that has seen it would, and the client goes on as if
// it had the answer.
func TestPolicyRetransmittedSYN(t *testing.T) {
	w := upWalled(t, "polsyn", map[string]string{"f.yaml": walledPod("syn", "server", "node1", "app: server") +
		walledPod("syn", "open", "node1", "app: open") +
		walledPod("syn", "near", "node1", "app: enemy") + walledPod("syn", "far", "node2", "app: enemy") +
		walledPod("syn", "caged-near", "node1", "app: caged") + walledPod("syn", "caged-far", "node2", "app: caged") +
		walledPod("syn", "friend", "node2", "app: friend") +
		walledService("syn", "server", "app: server", 8080) + walledService("syn", "open", "app: open", 8080) +
		policyManifest("syn", "wall",
			"podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]") +
		policyManifest("syn", "cage", "podSelector: {matchLabels: {app: caged}}, policyTypes: [Egress]")})
	port := uint16(31000)
	var tries []handshake
	var friends []handshake
	add := func(to *[]handshake, from *client, server *client) {
		vips := w.serviceIPs(t, "syn", server.name[len("syn/"):])
		for _, v4 := range []bool{true, false} {
			own := netip.AddrPortFrom(server.addr(v4), 8080)
			for kind, at := range map[string]netip.AddrPort{"itself": own, "Service": netip.AddrPortFrom(of(vips, v4), 80)} {
				port++
				*to = append(*to, handshake{fmt.Sprintf("%s to %s by %s, %s", from.name, server.name, kind, familyName(v4)), from,
					server, at, own, port})
			}
		}
	}
	server, open := w.pod(t, "server"), w.pod(t, "open")
	for _, name := range []string{"near", "far"} {
		add(&tries, w.pod(t, name), server)
	}
	for _, name := range []string{"caged-near", "caged-far"} {
		add(&tries, w.pod(t, name), open)
	}
	add(&friends, w.pod(t, "friend"), server)

	taps := map[*client]*tap{}
	for _, h := range append(tries, friends...) {
		for _, c := range []*client{h.client, h.server} {
			if taps[c] == nil {
				taps[c] = c.listen(t, "eth0", func(h heard) bool { return !h.leaving && h.proto == podns.TCP })
			}
		}
	}
	for round := range synRounds {
		for _, h := range tries {
			h.knock(t)
		}
		for _, h := range friends {
			h.syn(t, uint16(round))
		}
		time.Sleep(synPause)
	}
	testenv.Eventually(t, 5*time.Second, func() error {
		for _, h := range friends {
			if n := taps[h.server].count(h.arrives); n < synRounds {
				return fmt.Errorf("%s: %d segments, want at least %d: %s", h.name, n, synRounds,
					describe(taps[h.server].heard(h.arrives)))
			}
			if n := taps[h.client].count(h.answers); n == 0 {
				return fmt.Errorf("%s: no answer", h.name)
			}
		}
		return nil
	})
	for _, h := range tries {
		if frames := taps[h.server].heard(h.arrives); len(frames) > 0 {
			t.Errorf("%s: the server heard %s", h.name, describe(frames))
		}
		if frames := taps[h.client].heard(h.answers); len(frames) > 0 {
			t.Errorf("%s: the client heard %s", h.name, describe(frames))
		}
	}
	t.Logf("%d denied connections, each with %d SYNs, answers to them and data: nothing passed; %d allowed ones passed",
		len(tries), synRounds, len(friends))
}

// knock sends a SYN, the answer that the server would give, and what a client sends that has got it. Data that the
// server sends would be another matter: the server may speak to the client, and what answers it is a reply.
func (h handshake) knock(t *testing.T) {
	t.Helper()
	const seq, answer = 1000, 5000
	from := netip.AddrPortFrom(h.client.addr(h.at.Addr().Is4()), h.port)
	mine, theirs := h.client.mac(t), h.server.mac(t)
	clientSide, serverSide := h.client.sender(t), h.server.sender(t)
	syn := wire.TCPFrame(router, mine, from, h.at, wire.SYN, seq, 0, nil)
	for _, step := range []struct {
		by    sender
		frame []byte
	}{
		{clientSide, syn},
		{serverSide, wire.TCPFrame(router, theirs, h.own, from, wire.SYN|wire.ACK, answer, seq+1, nil)},
		{clientSide, syn},
		{clientSide, wire.TCPFrame(router, mine, from, h.at, wire.ACK, seq+1, answer+1, nil)},
		{clientSide, wire.TCPFrame(router, mine, from, h.at, wire.ACK|wire.PSH, seq+1, answer+1, []byte("data"))},
	} {
		if err := step.by.send(step.frame); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// syn sends a SYN alone, from another port each time: the server answers, and the client's kernel resets what it has
// not begun. The userspace datapath does not let a connection through a Service begin again from the same port that
// soon.
func (h handshake) syn(t *testing.T, round uint16) {
	t.Helper()
	from := netip.AddrPortFrom(h.client.addr(h.at.Addr().Is4()), h.port+friendPorts*round)
	if err := h.client.sender(t).send(wire.TCPFrame(router, h.client.mac(t), from, h.at, wire.SYN, 1000, 0,
		nil)); err != nil {
		t.Fatal(err)
	}
}

// arrives is what of it the server may hear, and answers the client.
func (h handshake) arrives(f heard) bool {
	return f.src.Addr() == h.client.addr(h.at.Addr().Is4()) && (f.src.Port()-h.port)%friendPorts == 0
}

func (h handshake) answers(f heard) bool { return (f.dst.Port()-h.port)%friendPorts == 0 }
