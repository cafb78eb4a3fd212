package openflow

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/digitalocean/go-openvswitch/ovs"
)

// GroupID is the number of a group in a switch.
type GroupID uint32

// Group is a group of a switch, comparable with ==.
type Group struct {
	ID GroupID
	// text is what follows the number in a line of `ovs-ofctl -O OpenFlow15 dump-groups`, as in
	// "type=select,selection_method=dp_hash,bucket=bucket_id:5,weight:100,actions=resubmit(,50)".
	text string
}

// String is the group as ovs-ofctl takes it.
func (g Group) String() string {
	return "group_id=" + strconv.FormatUint(uint64(g.ID), 10) + "," + g.text
}

// seedParam is what stands before the seed of a hash, which OVS takes as the hash's first value.
const seedParam = ",selection_method_param="

// Selection is how a select group chooses a bucket.
type Selection struct {
	text   string
	fields []Field
	err    error
}

// DPHash chooses by the datapath's own hash of the connection, the 5-tuple.
func DPHash() Selection { return Selection{text: "selection_method=dp_hash"} }

// Hash chooses by a hash of fields and the buckets' ids (rendezvous hashing), so that a changed list of buckets moves
// only what it must. Every combination of values is a datapath flow of its own.
func Hash(fields ...Field) Selection { return SeededHash(0, fields...) }

// SeededHash is Hash with a seed: each seed spreads the same values in another way. 0 is the seed of Hash.
func SeededHash(seed uint64, fields ...Field) Selection {
	fields = slices.Clone(fields)
	slices.SortFunc(fields, func(a, b Field) int { return cmp.Compare(a.order, b.order) })
	fields = slices.Compact(fields)
	names := make([]string, len(fields))
	for i, f := range fields {
		if f.width == 0 {
			return Selection{err: fmt.Errorf("hash: unknown field")}
		}
		names[i] = f.name
	}
	text := "selection_method=hash"
	if seed != 0 { // OVS prints no 0
		text += seedParam + strconv.FormatUint(seed, 10)
	}
	switch len(names) {
	case 0:
		return Selection{err: fmt.Errorf("hash: no fields")}
	case 1:
		return Selection{text: text + ",fields=" + names[0], fields: fields}
	}
	return Selection{text: text + ",fields(" + strings.Join(names, ",") + ")", fields: fields}
}

// Bucket is one of a select group's choices.
type Bucket struct {
	// ID is stable for what the bucket stands for; the hash of Hash is over it.
	ID uint32
	// Weight is this bucket's share in the sum of all weights.
	Weight  uint16
	Actions []ovs.Action
}

const maxBucketID = 0xffffff00 - 1 // above are OpenFlow's own

// NewGroup builds a select group. The order of buckets is kept. It refuses a group that is too large for one message:
// with IPv6 and what Services need, above some 500 buckets.
func NewGroup(id GroupID, by Selection, buckets []Bucket) (Group, error) {
	if by.err != nil {
		return Group{}, fmt.Errorf("group %d: %w", id, by.err)
	}
	if by.text == "" {
		return Group{}, fmt.Errorf("group %d says not how to select", id)
	}
	var b strings.Builder
	b.WriteString("type=select,")
	b.WriteString(by.text)
	seen := make(map[uint32]bool, len(buckets))
	all := make([]Actions, 0, len(buckets))
	for _, bucket := range buckets {
		switch {
		case bucket.ID > maxBucketID:
			return Group{}, fmt.Errorf("group %d: there is no bucket id %d", id, bucket.ID)
		case seen[bucket.ID]:
			return Group{}, fmt.Errorf("group %d has two buckets with the id %d", id, bucket.ID)
		case bucket.Weight == 0:
			return Group{}, fmt.Errorf("group %d: bucket %d has no weight and would never be chosen; leave it out", id,
				bucket.ID)
		case len(bucket.Actions) == 0:
			return Group{}, fmt.Errorf("group %d: bucket %d has no actions", id, bucket.ID)
		}
		seen[bucket.ID] = true
		actions, err := NewActions(bucket.Actions...)
		if err != nil {
			return Group{}, fmt.Errorf("group %d: bucket %d: %w", id, bucket.ID, err)
		}
		b.WriteString(",bucket=bucket_id:")
		b.WriteString(strconv.FormatUint(uint64(bucket.ID), 10))
		if bucket.Weight != 1 {
			b.WriteString(",weight:")
			b.WriteString(strconv.Itoa(int(bucket.Weight)))
		}
		b.WriteString(",actions=")
		b.WriteString(actions.String())
		all = append(all, actions)
	}
	if err := checkSize(id, by.fields, all); err != nil {
		return Group{}, err
	}
	g := Group{ID: id, text: b.String()}
	if i := strings.IndexFunc(g.text, notText); i >= 0 {
		return Group{}, fmt.Errorf("group %s has the character %q", g, g.text[i])
	}
	return g, nil
}

// ParseGroup reads a group as `ovs-ofctl -O OpenFlow15` prints it: dump-groups, one a line, and monitor.
func ParseGroup(line string) (Group, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(line), "group_id=")
	number, text, hasText := strings.Cut(text, ",")
	if !ok || !hasText {
		return Group{}, fmt.Errorf("parse group %q: no group_id", line)
	}
	id, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return Group{}, fmt.Errorf("parse group %q: %w", line, err)
	}
	return Group{ID: GroupID(id), text: strings.TrimRight(text, ",")}, nil
}

// Renumber gives the group with other numbers for itself and the groups that it leads to.
func (g Group) Renumber(number func(GroupID) GroupID) Group {
	return Group{ID: number(g.ID), text: renumber(g.text, number)}
}

const groupPrefix = "group:"

// ToGroup lets a group choose how the packet goes on.
func ToGroup(id GroupID) ovs.Action {
	return Action{groupPrefix + strconv.FormatUint(uint64(id), 10)}
}

// renumber replaces the numbers of groups in the text of actions or of buckets.
func renumber(text string, number func(GroupID) GroupID) string {
	var b strings.Builder
	for {
		at := strings.Index(text, groupPrefix)
		if at < 0 {
			return b.String() + text
		}
		end := at + len(groupPrefix)
		for end < len(text) && '0' <= text[end] && text[end] <= '9' {
			end++
		}
		b.WriteString(text[:at+len(groupPrefix)])
		digits := text[at+len(groupPrefix) : end]
		if id, err := strconv.ParseUint(digits, 10, 32); err == nil {
			digits = strconv.FormatUint(uint64(number(GroupID(id))), 10)
		}
		b.WriteString(digits)
		text = text[end:]
	}
}
