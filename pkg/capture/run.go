package capture

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Frame is a frame as a socket has received it.
type Frame struct {
	// Link is the index of the network device.
	Link int
	Time time.Time
	// Sent says that the node has sent it through the device.
	Sent bool
	// Length is that of the whole frame. Data is valid until the next reading.
	Length int
	Data   []byte
}

// Reader reads frames. An error ends the capture.
type Reader interface {
	// Read returns the next frame. Without one, it waits until the context ends if wait is set; else, and then, ok is
	// false.
	Read(ctx context.Context, wait bool) (f Frame, ok bool, err error)
	// Lost is how many frames were lost since the reader was opened.
	Lost() (uint64, error)
}

// Sink takes records. It must not keep a packet's data.
type Sink interface {
	Send(record Record) error
	// Flush is called when no packet waits.
	Flush() error
}

// Plan is a request as a node carries it out.
type Plan struct {
	// Request is complete.
	Request
	Filter Filter
	Ports  []Port
	// Links are the indexes of the ports' devices.
	Links []int
	// Reversed are the ports for which what the device sends comes from what is at the port.
	Reversed []bool
	// Name is an address's name; empty for none. It is called for every packet.
	Name func(netip.Addr) string
}

// maxTold bounds the addresses whose names were told and are remembered.
const maxTold = 1 << 16

// Run sends what a reader reads, until a bound of the plan is reached, the reader fails, or the context ends. The error
// is the sink's or the context's; other ends are the last record.
func Run(ctx context.Context, r Reader, p Plan, sink Sink) error {
	limit, cancel := context.WithTimeout(ctx, p.Time)
	defer cancel()
	run := running{Plan: p, sink: sink, told: map[netip.Addr]string{}}
	run.tell(Record{Ports: p.Ports})
	end := run.packets(limit, r)
	if run.failed != nil {
		return run.failed
	}
	if err := run.lost(r); err != nil && end.Reason == "" {
		end = End{Reason: err.Error(), Failed: true}
	}
	if end.Reason == "" {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		end.Reason = "the time is over: " + p.Time.String()
	}
	run.tell(Record{End: &end})
	run.flush()
	return run.failed
}

type running struct {
	Plan
	sink   Sink
	failed error // the sink's
	told   map[netip.Addr]string
	// count and bytes are what was sent, dropped what was told to be lost.
	count   int
	bytes   int64
	dropped uint64
}

// packets sends packets. The end is empty when the context has ended.
func (r *running) packets(ctx context.Context, from Reader) End {
	for ctx.Err() == nil && r.failed == nil {
		frame, ok, err := from.Read(ctx, false)
		if err == nil && !ok {
			if err = r.lost(from); err == nil {
				r.flush()
				frame, ok, err = from.Read(ctx, true)
			}
		}
		switch {
		case err != nil:
			return End{Reason: err.Error(), Failed: true}
		case !ok:
			continue
		}
		if end := r.packet(frame); end.Reason != "" {
			return end
		}
	}
	return End{}
}

// packet sends a packet if it is wanted, and says whether it was the last.
func (r *running) packet(f Frame) End {
	port := slices.Index(r.Links, f.Link)
	if port < 0 {
		return End{}
	}
	tunnel := r.Ports[port].Tunnel
	h := Parse(f.Data, tunnel)
	if tunnel && h.Tunnel == nil && r.At != AtAll || !r.Filter.Match(h) {
		return End{}
	}
	addrs := []netip.Addr{h.Src, h.Dst, h.Target}
	if h.Tunnel != nil {
		addrs = append(addrs, h.Tunnel.Src, h.Tunnel.Dst)
	}
	for _, addr := range addrs {
		r.name(addr)
	}
	data := f.Data[:min(len(f.Data), r.SnapLen)]
	r.tell(Record{Packet: &Packet{Port: port, Time: f.Time, To: f.Sent != r.Reversed[port], Length: f.Length, Data: data}})
	r.count++
	r.bytes += int64(len(data))
	switch {
	case r.count >= r.Packets:
		return End{Reason: fmt.Sprintf("%d packets were captured", r.count)}
	case r.bytes >= r.Bytes:
		return End{Reason: fmt.Sprintf("%d bytes were captured", r.bytes)}
	}
	return End{}
}

// name tells an address's name if it is new.
func (r *running) name(addr netip.Addr) {
	if !addr.IsValid() {
		return
	}
	if name := r.Name(addr); name != r.told[addr] {
		if len(r.told) >= maxTold {
			clear(r.told)
		}
		r.told[addr] = name
		r.tell(Record{Name: &Name{addr, name}})
	}
}

// lost tells of losses if there are more.
func (r *running) lost(from Reader) error {
	lost, err := from.Lost()
	if lost > r.dropped {
		r.dropped = lost
		r.tell(Record{Lost: lost})
	}
	return err
}

func (r *running) tell(record Record) {
	if r.failed == nil {
		r.failed = r.sink.Send(record)
	}
}

func (r *running) flush() {
	if r.failed == nil {
		r.failed = r.sink.Flush()
	}
}

// ErrGone is the end of a capture whose device was removed.
var ErrGone = errors.New("the network device was removed or is down")
