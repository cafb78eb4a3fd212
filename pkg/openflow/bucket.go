package openflow

import (
	"strconv"
	"strings"
)

// ShownBucket is a bucket as a group's text has it.
type ShownBucket struct {
	ID      uint32
	Weight  uint16
	Actions Actions
}

// Selection is how the group chooses, in the words of its text: "dp_hash", "hash of ip_src", "hash of ip_src, seed 5".
func (g Group) Selection() string {
	head, _, _ := strings.Cut(g.text, ",bucket=")
	_, method, _ := strings.Cut(head, "selection_method=")
	method, fields, ok := strings.Cut(method, ",fields")
	if !ok {
		return method
	}
	method, seed, seeded := strings.Cut(method, seedParam)
	text := method + " of " + strings.Trim(fields, "=()")
	if seeded {
		text += ", seed " + seed
	}
	return text
}

// Buckets lists the group's buckets.
func (g Group) Buckets() []ShownBucket {
	parts := strings.Split(g.text, ",bucket=")
	buckets := make([]ShownBucket, 0, len(parts)-1)
	for _, part := range parts[1:] {
		head, actions, _ := strings.Cut(part, "actions=")
		b := ShownBucket{Weight: 1, Actions: ParseActions(actions)}
		for _, field := range strings.Split(head, ",") {
			name, value, _ := strings.Cut(field, ":")
			n, err := strconv.ParseUint(value, 10, 32)
			switch {
			case err != nil:
			case name == "bucket_id":
				b.ID = uint32(n)
			case name == "weight":
				b.Weight = uint16(n)
			}
		}
		buckets = append(buckets, b)
	}
	return buckets
}
