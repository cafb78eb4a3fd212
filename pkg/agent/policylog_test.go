package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// copies is a switch as far as copies of packets go: it has meters, and a listener gets what is sent meanwhile.
type copies struct {
	mu        sync.Mutex
	meters    map[openflow.MeterID]openflow.Meter
	held      map[openflow.MeterID]uint64
	listeners map[int]chan openflow.PacketIn
	next      int
	down      bool
}

func (c *copies) SetMeters(_ context.Context, meters []openflow.Meter) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return errors.New("the switch is down")
	}
	for _, m := range meters {
		c.meters[m.ID] = m
	}
	return nil
}

func (c *copies) HeldBack(context.Context) (map[openflow.MeterID]uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := map[openflow.MeterID]uint64{}
	for id := range c.meters {
		now[id] = c.held[id]
	}
	return now, nil
}

func (c *copies) Packets(ctx context.Context, each func(openflow.PacketIn)) error {
	c.mu.Lock()
	id, packets := c.next, make(chan openflow.PacketIn, 10)
	c.next++
	c.listeners[id] = packets
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.listeners, id)
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-packets:
			each(p)
		}
	}
}

// send gives a packet to who listens, and says how many do.
func (c *copies) send(p openflow.PacketIn) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, packets := range c.listeners {
		packets <- p
	}
	return len(c.listeners)
}

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// TestPolicyLog: the agent listens while a policy asks for it; what is written names the packet, the verdict and who
// decided.
func TestPolicyLog(t *testing.T) {
	pod := addr("10.244.1.2")
	loud, quiet := isolated("ns/loud", pod), isolated("ns/quiet", pod)
	loud.Log = true
	att := model.Attachment{ContainerID: "c", Pod: model.PodRef{Namespace: "ns", Name: "web"}, IPs: []netip.Addr{pod}}
	view := &model.Snapshot{Policies: policies(quiet), Attachments: map[model.AttachmentKey]model.Attachment{
		att.Key(): att}}
	sw := &copies{meters: map[openflow.MeterID]openflow.Meter{}, held: map[openflow.MeterID]uint64{},
		listeners: map[int]chan openflow.PacketIn{}}
	var out lines
	l := &policyLog{sw: sw, log: slog.New(slog.NewTextHandler(&out, nil)), view: func() *model.Snapshot { return view }}
	defer l.close()
	sync := func() {
		t.Helper()
		if err := l.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	if l.stop != nil || len(sw.meters) > 0 {
		t.Error("a policy that does not log costs a listener")
	}

	dry := isolated("ns/dry", pod)
	dry.Log, dry.Staged = true, true
	view = &model.Snapshot{Policies: policies(quiet, loud, dry), Attachments: view.Attachments}
	sw.down = true
	if err := l.sync(t.Context()); err == nil {
		t.Error("the agent listens without meters: nothing would limit it")
	}
	sw.down = false
	sync()
	sync()
	cookie := flows.Cookie(model.NetworkPolicy("ns", "loud").Owner())
	packet := openflow.PacketIn{Table: flows.IngressPolicy, Cookie: cookie, Data: []byte{0x58, byte(flows.IngressPolicy),
		byte(model.Accept), 0, 0, 0, 3}, Protocol: "tcp6",
		Source: addr("10.9.0.1"), Destination: pod, SourcePort: 1234, DestinationPort: 80}
	testenv.Until(t, "the agent stops listening", func() bool { return sw.send(openflow.PacketIn{Cookie: 1}) == 1 })
	sw.send(packet)
	packet.Data = []byte{0x58, byte(flows.IngressPolicy), byte(model.Deny), 0xff, 0xff, 0xff, 0xff}
	packet.Protocol, packet.DestinationPort = "icmp", 0
	sw.send(packet)
	const preview = byte(flows.IngressPolicy + flows.PreviewDenied - flows.PolicyDenied)
	packet.Cookie, packet.Data = flows.Cookie(dry.Owner()), []byte{0x58, preview, byte(model.Deny), 0xff, 0xff, 0xff, 0xff}
	sw.send(packet)
	packet.Data = []byte{0x58, preview, byte(model.Accept), 0, 0, 0, 5}
	sw.send(packet)
	for _, want := range []string{
		`verdict="would be denied" tier=NetworkPolicy policy=ns/dry,ns/loud,ns/quiet direction=Ingress staged=true pod=ns/web` + "\n",
		`verdict="would be allowed" tier=NetworkPolicy policy=ns/dry direction=Ingress rule=5 staged=true pod=ns/web` + "\n",
		`msg="policy log" src=10.9.0.1 dst=10.244.1.2 port=80 proto=tcp verdict=allowed tier=NetworkPolicy policy=ns/loud direction=Ingress rule=3 pod=ns/web` + "\n",
		`msg="policy log" src=10.9.0.1 dst=10.244.1.2 proto=icmp verdict=denied tier=NetworkPolicy policy=ns/loud,ns/quiet direction=Ingress pod=ns/web` + "\n",
	} {
		testenv.Until(t, "the log has "+want, func() bool { return out.has(want) })
	}

	sw.mu.Lock()
	sw.held[flows.MeterDenied.ID], sw.held[flows.MeterStaged.ID] = 7, 3
	sw.mu.Unlock()
	l.checked = time.Time{}
	sync()
	if !out.has("these were not logged\" denied=7 allowed=0 staged=3") {
		t.Error("the log does not say how much was not logged")
	}
	view = &model.Snapshot{Policies: policies(quiet)}
	sync()
	if n := sw.send(packet); n != 0 {
		t.Errorf("%d still listen", n)
	}
}
