package state

import "reflect"

// Pending are changes that a Store has not been given yet. A change that a later one makes meaningless is dropped, so
// that the number of changes is bounded by the objects that they are about, however long they are not taken. It is not
// safe for concurrent use.
type Pending struct {
	changes []Change // nil for what was dropped
	dropped int
	at      map[subject]int
}

// subject is what a change says something about: the later of two changes of one type is all that matters then. Setting
// and deleting an object are different subjects: what a Store does with a new object of an old name is its own
// business.
type subject struct {
	change      reflect.Type
	name, other string
}

// Add adds a change behind all others.
func (p *Pending) Add(c Change) {
	about, ok := subjectOf(c)
	if !ok {
		p.changes = append(p.changes, c)
		return
	}
	if p.at == nil {
		p.at = map[subject]int{}
	}
	if i, had := p.at[about]; had {
		// A Store may keep what a node's object said before, so of these only one that says the same is dropped.
		if _, node := c.(SetNode); !node || reflect.DeepEqual(p.changes[i], c) {
			p.changes[i] = nil
			p.dropped++
		}
	}
	p.at[about] = len(p.changes)
	p.changes = append(p.changes, c)
	if p.dropped > len(p.changes)/2+32 {
		p.compact()
	}
}

// compact takes out what was dropped.
func (p *Pending) compact() {
	kept := p.changes[:0]
	for _, c := range p.changes {
		if c == nil {
			continue
		}
		if about, ok := subjectOf(c); ok {
			p.at[about] = len(kept) // a later one of the same subject comes later
		}
		kept = append(kept, c)
	}
	clear(p.changes[len(kept):])
	p.changes, p.dropped = kept, 0
}

// Take gives the changes and leaves none.
func (p *Pending) Take() []Change {
	p.compact()
	changes := p.changes
	p.changes, p.at = nil, nil
	return changes
}

// Len is how many changes are held, dropped ones among them.
func (p *Pending) Len() int { return len(p.changes) }

// subjectOf names what a change is about; ok is false for a change that no later one makes meaningless.
func subjectOf(c Change) (_ subject, ok bool) {
	s := subject{change: reflect.TypeOf(c)}
	switch c := c.(type) {
	case SetNode:
		s.name = c.Node.Name
	case DeleteNode:
		s.name = c.Name
	case SetPod:
		s.name, s.other = c.Pod.Namespace, c.Pod.Name
	case DeletePod:
		s.name, s.other = c.Namespace, c.Name
	case SetNamespace:
		s.name = c.Namespace.Name
	case DeleteNamespace:
		s.name = c.Name
	case SetPolicy:
		s.name, s.other = c.Policy.Namespace, c.Policy.Name
	case DeletePolicy:
		s.name, s.other = c.ID.Namespace, c.ID.Name
	case SetPeerNode:
		s.name = c.Node.Name
	case SetService:
		s.name = c.Service.Name
	case SetJoinedService:
		s.name = c.Service.Name
	case SetSlice:
		s.name = c.Slice.Name
	case DeleteSlice:
		s.name = c.Name
	case DeleteService:
		s.name = c.Name
	case SetAttachment:
		s.name, s.other = c.Attachment.ContainerID, c.Attachment.IfName
	case DeleteAttachment:
		s.name, s.other = c.Key.ContainerID, c.Key.IfName
	case SetName:
		s.name = c.Name
	case SetOtherProxy:
		s.name = c.Service
	case SetServiceCIDRs:
		if c.Configured {
			s.name = "configured"
		}
	case SetZone, SetExternalIPs, SetLocalAddrs, SetClusterCIDRs, SetTime, SetTransport, SetReceiveGrace, SetRouted,
		SetHandshakes, SetKernelDatapath, SetKeepEstablished, SetDNSServers, Recall:
	default:
		return s, false
	}
	return s, true
}
