package flows

import (
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// Group is a compiled group with what the switch does not need to know.
type Group struct {
	openflow.Group
	Owner model.Owner
	// Table is where packets meet the group; its contract holds for the buckets, too.
	Table openflow.TableID
}

// Groups have no cookie, so their numbers say that they are ours: 2 bits that other programs are unlikely to set, and
// 30 bits of a hash of what the group is for.
const (
	groupMark openflow.GroupID = 0x4000_0000
	groupMask openflow.GroupID = 0xc000_0000
)

// OurGroup says whether a group with this number was written by Weft.
func OurGroup(id openflow.GroupID) bool { return id&groupMask == groupMark }

// GroupID is the number of an owner's group, given what tells it apart from the owner's other groups. Another may be
// given the same number; Compiler resolves that.
func GroupID(o model.Owner, part string) openflow.GroupID {
	h := fnv.New64a()
	_, _ = h.Write([]byte{byte(o.Kind)}) // a hash takes every write
	_, _ = h.Write([]byte(o.Name))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(part))
	sum := h.Sum64()
	return groupMark | openflow.GroupID(sum^sum>>32)&^groupMask
}

func nextGroupID(id openflow.GroupID) openflow.GroupID { return groupMark | (id+1)&^groupMask }

// group adds a group that packets meet in table ServiceLB, and gives its number.
func (b *builder) group(part string, by openflow.Selection, buckets []openflow.Bucket) openflow.GroupID {
	id := GroupID(b.owner, part)
	for slices.ContainsFunc(b.groups, func(g Group) bool { return g.ID == id }) {
		id = nextGroupID(id) // the owner's parts come in an order of their own, so this depends on nothing else
	}
	g, err := openflow.NewGroup(id, by, buckets)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("%s: %w", part, err)
	}
	b.groups = append(b.groups, Group{Group: g, Owner: b.owner, Table: ServiceLB})
	return id
}

// CheckGroup says in which way a group's buckets break the contract of the table in which packets meet it, or nil.
func CheckGroup(g Group) error {
	for _, b := range g.Buckets() {
		if err := Check(openflow.Flow{Key: openflow.Key{Table: g.Table}, Actions: b.Actions}); err != nil {
			return fmt.Errorf("group %d: %w", g.ID, err)
		}
	}
	return nil
}

// numbers settles which group has which number. Groups are compiled with the number that they want. Where several want
// one, the first in the owners' order has it and each of the others takes the next that no group wants. So the numbers
// follow from the snapshot alone, and a group's number changes only when one that wants the same comes or goes.
type numbers struct {
	wanted    map[openflow.GroupID][]model.Owner // in the owners' order
	contested map[openflow.GroupID]bool
	// moved are the groups that do not have the number that they want.
	moved map[model.Owner]map[openflow.GroupID]openflow.GroupID
}

func newNumbers() numbers {
	return numbers{wanted: map[openflow.GroupID][]model.Owner{}, contested: map[openflow.GroupID]bool{}}
}

func (n *numbers) want(id openflow.GroupID, o model.Owner) {
	at, _ := slices.BinarySearchFunc(n.wanted[id], o, model.Owner.Compare)
	n.wanted[id] = slices.Insert(n.wanted[id], at, o)
	if len(n.wanted[id]) > 1 {
		n.contested[id] = true
	}
}

func (n *numbers) release(id openflow.GroupID, o model.Owner) {
	rest := slices.DeleteFunc(n.wanted[id], func(other model.Owner) bool { return other == o })
	if n.wanted[id] = rest; len(rest) == 0 {
		delete(n.wanted, id)
	}
	if len(rest) < 2 {
		delete(n.contested, id)
	}
}

// settle gives what moved should be.
func (n *numbers) settle() map[model.Owner]map[openflow.GroupID]openflow.GroupID {
	if len(n.contested) == 0 {
		return nil
	}
	moved := map[model.Owner]map[openflow.GroupID]openflow.GroupID{}
	taken := map[openflow.GroupID]bool{}
	for _, id := range slices.Sorted(maps.Keys(n.contested)) {
		for _, o := range n.wanted[id][1:] {
			free := nextGroupID(id)
			for len(n.wanted[free]) > 0 || taken[free] {
				free = nextGroupID(free)
			}
			taken[free] = true
			if moved[o] == nil {
				moved[o] = map[openflow.GroupID]openflow.GroupID{}
			}
			moved[o][id] = free
		}
	}
	return moved
}

// differ lists the owners that have other numbers now than with moved.
func (n *numbers) differ(moved map[model.Owner]map[openflow.GroupID]openflow.GroupID) []model.Owner {
	var owners []model.Owner
	for o, now := range moved {
		if !maps.Equal(n.moved[o], now) {
			owners = append(owners, o)
		}
	}
	for o := range n.moved {
		if moved[o] == nil {
			owners = append(owners, o)
		}
	}
	return owners
}

// number is what an owner's group has in place of the number that it wants.
func (n *numbers) number(o model.Owner, id openflow.GroupID) openflow.GroupID {
	if now, ok := n.moved[o][id]; ok {
		return now
	}
	return id
}

// flow is an owner's flow with the numbers that its groups have.
func (n *numbers) flow(f Flow) Flow {
	if n.moved[f.Owner] != nil {
		f.Actions = f.Actions.Renumber(func(id openflow.GroupID) openflow.GroupID {
			return n.number(f.Owner, id)
		})
	}
	return f
}

// group is an owner's group with the number that it has, and those of the groups that it leads to.
func (n *numbers) group(g Group) Group {
	if n.moved[g.Owner] != nil {
		g.Group = g.Renumber(func(id openflow.GroupID) openflow.GroupID { return n.number(g.Owner, id) })
	}
	return g
}
