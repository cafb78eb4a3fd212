package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/capture"
)

// shower shows the records of all nodes. Its mutex guards what follows it, and the outputs.
type shower struct {
	out, errs io.Writer
	format    terminal.Format
	// many says that there is more than one node.
	many bool

	mu   sync.Mutex
	file *capture.Writer // nil for lines
	// count and lost are of all nodes; failed says that a node's capture ended by a fault.
	count  int
	lost   uint64
	failed bool
	ends   []string
}

// stream is what one node sends. Its goroutine calls record.
type stream struct {
	*shower
	node  string
	ports []capture.Port
	first int // the index of the first port in the file
	lost  uint64
	names capture.Names
}

// record shows a record.
func (s *stream) record(r capture.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Ports != nil:
		return s.begin(r.Ports)
	case r.Name != nil:
		s.names.Set(*r.Name)
		if s.file != nil && r.Name.Name != "" {
			return s.file.Name(r.Name.Addr, r.Name.Name)
		}
	case r.Packet != nil:
		if r.Packet.Port < 0 || r.Packet.Port >= len(s.ports) {
			return fmt.Errorf("the agent sent a packet of port %d, and told of %d ports", r.Packet.Port, len(s.ports))
		}
		s.count++
		return s.packet(*r.Packet)
	case r.Lost > 0:
		s.shower.lost += r.Lost - min(s.lost, r.Lost)
		s.lost = r.Lost
		if s.file != nil {
			return s.file.Lost(s.first, uint64(time.Now().UnixNano()), r.Lost)
		}
	case r.End != nil:
		s.failed = s.failed || r.End.Failed
		text := r.End.Reason
		if s.node != "" {
			text = "node " + s.node + ": " + text
		}
		s.ends = append(s.ends, text)
	}
	return nil
}

// begin takes note of the ports, and says that packets are captured now.
func (s *stream) begin(ports []capture.Port) (err error) {
	s.ports = ports
	text := fmt.Sprintf("capturing at %d ports", len(ports))
	if len(ports) == 1 {
		text = fmt.Sprintf("capturing at %s (%s)", ports[0].Name, ports[0].Link)
	}
	if s.node != "" {
		text += " on " + s.node
	}
	fmt.Fprintln(s.errs, text)
	if s.file == nil {
		return nil
	}
	named := make([]capture.Port, len(ports))
	for i, p := range ports {
		if named[i] = p; s.node != "" {
			named[i].Name = s.node + " " + p.Name
		}
	}
	s.first, err = s.file.Ports(named)
	return err
}

func (s *stream) packet(p capture.Packet) error {
	if s.file != nil {
		p.Port += s.first
		return s.file.Packet(p)
	}
	at := s.ports[p.Port]
	h := capture.Parse(p.Data, at.Tunnel)
	line := packetLine{Node: s.node, Time: p.Time, At: at.Name, To: p.To, Protocol: h.ProtocolName(),
		Info: h.Info(s.names.Of), Length: p.Length}
	line.Source, line.Destination = h.Ends(netip.Addr.String)
	line.SourceName, line.DestinationName = h.Ends(s.names.Of)
	if s.format != terminal.Table {
		return json.NewEncoder(s.out).Encode(line)
	}
	return line.write(s.out, s.many)
}

// summary says how much was captured, and why it ended.
func (s *shower) summary(interrupted bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range s.ends {
		fmt.Fprintf(s.errs, "ended: %s\n", text)
	}
	if len(s.ends) == 0 && !interrupted {
		return // the error says why
	}
	fmt.Fprintf(s.errs, "%d packets, %d lost because they came too fast\n", s.count, s.lost)
}
