package capture_test

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/capture"
)

// reader gives frames, and then an error, or waits for the end of the context.
type reader struct {
	frames []capture.Frame
	err    error
	lost   []uint64 // each time that it is asked
	waited int
}

func (r *reader) Read(ctx context.Context, wait bool) (f capture.Frame, ok bool, err error) {
	switch {
	case len(r.frames) > 0:
		f, r.frames = r.frames[0], r.frames[1:]
		return f, true, nil
	case r.err != nil && wait:
		return f, false, r.err
	case wait:
		r.waited++
		<-ctx.Done()
	}
	return f, false, nil
}

func (r *reader) Lost() (n uint64, err error) {
	if len(r.lost) == 0 {
		return 0, nil
	}
	if n = r.lost[0]; len(r.lost) > 1 {
		r.lost = r.lost[1:]
	}
	return n, nil
}

// records keeps what it is sent, as a client would see it.
type records struct {
	list    []capture.Record
	flushed int // how many were there at the last flush
	fails   error
}

func (r *records) Send(record capture.Record) error {
	if record.Packet != nil {
		copied := *record.Packet
		copied.Data = append([]byte{}, copied.Data...)
		record.Packet = &copied
	}
	r.list = append(r.list, record)
	if len(r.list) > 1 {
		return r.fails
	}
	return nil
}

func (r *records) Flush() error {
	r.flushed = len(r.list)
	return nil
}

func (r *records) packets() (list []capture.Packet) {
	for _, one := range r.list {
		if one.Packet != nil {
			list = append(list, *one.Packet)
		}
	}
	return list
}

func (r *records) end() capture.End {
	if last := r.list[len(r.list)-1]; last.End != nil {
		return *last.End
	}
	return capture.End{}
}

func planOf(t *testing.T, r capture.Request) capture.Plan {
	t.Helper()
	r.At = "x"
	r, err := r.Complete()
	if err != nil {
		t.Fatal(err)
	}
	return capture.Plan{Request: r, Ports: []capture.Port{{Name: "shop/client", Link: "a"}, {Name: "gateway", Link: "b"},
		{Name: "tunnel", Link: "c", Tunnel: true}}, Links: []int{7, 8, 9}, Reversed: []bool{false, true, false},
		Name: func(addr netip.Addr) string { return known()[addr] }}
}

func frameOf(link int, sent bool, name string) capture.Frame {
	data := frames[name].frame
	return capture.Frame{Link: link, Sent: sent, Data: data, Length: len(data) + 1000, Time: time.Unix(1, 2)}
}

// TestRun: ports come first, names before the packets that have them and once, packets with their direction as seen
// from the port; a packet of another device, one that is not wanted and one outside of a tunnel are left out;
// everything is flushed before a wait.
func TestRun(t *testing.T) {
	r := &reader{frames: []capture.Frame{
		frameOf(7, false, "syn"), frameOf(7, true, "data"), frameOf(6, true, "data"), frameOf(8, true, "syn"), frameOf(8, false, "syn"),
		frameOf(9, true, "tunnel"), frameOf(9, true, "syn"), frameOf(7, true, "udp"),
	}, err: capture.ErrGone, lost: []uint64{0, 5}}
	plan := planOf(t, capture.Request{Protocol: capture.TCP})
	plan.Filter = capture.Filter{Protocol: capture.TCP}
	var got records
	if err := capture.Run(t.Context(), r, plan, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.list[0].Ports, plan.Ports) {
		t.Errorf("the first record is %+v", got.list[0])
	}
	var order []string
	for _, one := range got.list[1:] {
		switch {
		case one.Name != nil:
			order = append(order, one.Name.Name)
		case one.Packet != nil:
			order = append(order, map[bool]string{true: "to ", false: "from "}[one.Packet.To]+plan.Ports[one.Packet.Port].Name)
		case one.Lost > 0:
			order = append(order, "lost")
		}
	}
	want := "shop/client|shop/web|from shop/client|to shop/client|from gateway|to gateway|node/n1|node/n2|to tunnel|lost"
	if text := strings.Join(order, "|"); text != want {
		t.Errorf("order %s\n want %s", text, want)
	}
	if p := got.packets()[0]; p.Length != len(p.Data)+1000 || !p.Time.Equal(time.Unix(1, 2)) {
		t.Errorf("packet %+v", p)
	}
	if end := got.end(); !end.Failed || end.Reason != capture.ErrGone.Error() || got.flushed != len(got.list) {
		t.Errorf("end %+v, %d of %d flushed", end, got.flushed, len(got.list))
	}
}

// TestBounds: each bound ends a capture and is named; the data of a packet is cut.
func TestBounds(t *testing.T) {
	two := func() *reader {
		long := frameOf(7, false, "syn")
		long.Data = append(long.Data[:len(long.Data):len(long.Data)], make([]byte, 500)...)
		return &reader{frames: []capture.Frame{long, frameOf(7, false, "syn"), frameOf(7, false, "syn")}}
	}
	for _, tc := range []struct {
		request capture.Request
		packets int
		want    string
	}{
		{capture.Request{Packets: 2}, 2, "2 packets were captured"},
		{capture.Request{Bytes: 200, SnapLen: 200}, 1, "200 bytes were captured"},
		{capture.Request{Bytes: 201, SnapLen: 200}, 2, "254 bytes were captured"},
		{capture.Request{Time: 10 * time.Millisecond}, 3, "the time is over: 10ms"},
	} {
		var got records
		if err := capture.Run(t.Context(), two(), planOf(t, tc.request), &got); err != nil {
			t.Error(err)
		}
		if end := got.end(); end.Failed || end.Reason != tc.want || len(got.packets()) != tc.packets {
			t.Errorf("%+v: %d packets, end %+v, want %q", tc.request, len(got.packets()), end, tc.want)
		}
	}
}

// TestClientGone: a capture ends with its context, and with its sink.
func TestClientGone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var got records
	if err := capture.Run(ctx, &reader{}, planOf(t, capture.Request{}), &got); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	gone := errors.New("gone")
	r := &reader{frames: []capture.Frame{frameOf(7, false, "syn"), frameOf(7, false, "syn")}}
	if err := capture.Run(t.Context(), r, planOf(t, capture.Request{}), &records{fails: gone}); !errors.Is(err, gone) ||
		r.waited > 0 {
		t.Errorf("%v, waited %d times", err, r.waited)
	}
}

// TestNames: a name that changes is told again; one that goes is told as none.
func TestNames(t *testing.T) {
	plan := planOf(t, capture.Request{Packets: 3})
	names := []string{"a", "a", "b", "b", "", ""} // of source and destination of each packet
	plan.Name = func(netip.Addr) (name string) {
		name, names = names[0], names[1:]
		return name
	}
	r := &reader{frames: []capture.Frame{frameOf(7, false, "syn"), frameOf(7, false, "syn"), frameOf(7, false, "syn")}}
	var got records
	if err := capture.Run(t.Context(), r, plan, &got); err != nil {
		t.Fatal(err)
	}
	shown := capture.Names{}
	var texts []string
	for _, one := range got.list {
		if one.Name != nil {
			shown.Set(*one.Name)
		}
		if one.Packet != nil {
			src, _ := capture.Parse(one.Packet.Data, false).Ends(shown.Of)
			texts = append(texts, src)
		}
	}
	if want := []string{"a:40000", "b:40000", "10.244.0.2:40000"}; !reflect.DeepEqual(texts, want) {
		t.Errorf("%q, want %q", texts, want)
	}
}
