package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is one object of a file, with the lines of everything in it.
type document struct {
	file string
	root *yaml.Node
	// object is its kind and name, for a person.
	object string
	// json is the same document as JSON, and marks say which line its bytes come from.
	json  []byte
	marks []mark
	// open are the anchors and mappings that are being written, left the values that are written as null.
	open, left map[*yaml.Node]bool
	merges     int // mappings that merge keys have brought
}

// maxDocument bounds what aliases can blow a document up to.
const maxDocument = 4 << 20

// maxMerges bounds the mappings that merge keys bring, which may have merge keys of their own.
const maxMerges = 10_000

type mark struct {
	offset int
	node   *yaml.Node
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// parse splits a file into its documents. One that cannot be read does not keep the others from being checked.
func parse(file string, data []byte) (docs []*document, problems Problems) {
	for _, chunk := range split(string(data)) {
		var node yaml.Node
		err := yaml.NewDecoder(strings.NewReader(chunk)).Decode(&node)
		if errors.Is(err, io.EOF) {
			continue // nothing but comments
		}
		if err != nil {
			// The package leaves the line out when it is the first.
			p := Problem{File: file, Line: 1, Text: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: ")}
			if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
				p.Line, _ = strconv.Atoi(m[1]) // the expression takes digits only
				p.Text = "not YAML: " + strings.TrimPrefix(err.Error(), m[0])
			}
			p.Text += hint(chunk, err)
			problems = append(problems, p)
			continue
		}
		for _, root := range objects(node.Content[0]) {
			doc := &document{file: file, root: root, object: nameOf(root), open: map[*yaml.Node]bool{}}
			if err := doc.encode(root); err != nil {
				problems = append(problems, Problem{File: file, Line: err.line, Text: err.text})
				continue
			}
			docs = append(docs, doc)
		}
	}
	return docs, problems
}

// objects are what a document has: one object, those of a List, as kubectl writes several, or none.
func objects(root *yaml.Node) []*yaml.Node {
	items := child(root, "items")
	switch {
	case root.ShortTag() == "!!null":
		return nil
	case child(root, "kind").Value != "List" || items.Kind != yaml.SequenceNode:
		return []*yaml.Node{root}
	}
	var all []*yaml.Node
	for _, item := range items.Content {
		all = append(all, objects(item)...)
	}
	return all
}

// nameOf is an object's kind and name as the manifest says them, for example "Deployment shop/web".
func nameOf(root *yaml.Node) string {
	metadata := child(root, "metadata")
	name := child(metadata, "name").Value
	if namespace := child(metadata, "namespace").Value; namespace != "" {
		name = namespace + "/" + name
	}
	return strings.TrimSpace(child(root, "kind").Value + " " + name)
}

// child is the value of a mapping's key; an empty node where there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i+1]
			}
		}
	}
	return &yaml.Node{}
}

// hint names the likely reason of a text that is not YAML.
func hint(text string, err error) string {
	switch {
	case strings.Contains(text, "{{"):
		return "; it looks like a Helm template: give the lab what `helm template` makes of it"
	case strings.Contains(err.Error(), "cannot start any token") && strings.Contains(text, "\t"):
		return "; YAML is not indented with tabs"
	}
	return ""
}

// split cuts a file at its document markers. Every chunk keeps its line numbers, by the empty lines before it.
func split(text string) []string {
	var chunks []string
	var chunk strings.Builder
	lines := 0
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimRight(line, " \t\r\n"); trimmed == "---" || strings.HasPrefix(trimmed, "--- #") {
			chunks = append(chunks, chunk.String())
			chunk.Reset()
			chunk.WriteString(strings.Repeat("\n", lines))
		}
		chunk.WriteString(line)
		lines++
	}
	return append(chunks, chunk.String())
}

type encodeError struct {
	line int
	text string
}

// encode appends a node as JSON.
func (d *document) encode(n *yaml.Node) *encodeError {
	d.marks = append(d.marks, mark{len(d.json), n})
	if len(d.json) > maxDocument {
		return &encodeError{n.Line, fmt.Sprintf("the document has more than %d bytes with its aliases", maxDocument)}
	}
	if d.left[n] {
		d.text("null")
		return nil
	}
	switch n.Kind {
	case yaml.AliasNode:
		if d.open[n.Alias] {
			return &encodeError{n.Line, "the alias *" + n.Value + " stands for something that it is a part of"}
		}
		d.open[n.Alias] = true
		defer delete(d.open, n.Alias)
		return d.encode(n.Alias)
	case yaml.SequenceNode:
		d.text("[")
		for i, item := range n.Content {
			if i > 0 {
				d.text(",")
			}
			if err := d.encode(item); err != nil {
				return err
			}
		}
		d.text("]")
	case yaml.MappingNode:
		d.open[n] = true
		defer delete(d.open, n)
		fields, err := d.fields(n)
		if err != nil {
			return err
		}
		d.text("{")
		for i, f := range fields {
			if i > 0 {
				d.text(",")
			}
			d.value(f.key.Value)
			d.text(":")
			if err := d.encode(f.value); err != nil {
				return err
			}
		}
		d.text("}")
	default:
		return d.scalar(n)
	}
	return nil
}

// field is a key of a mapping with its value.
type field struct {
	key, value *yaml.Node
	merged     bool // by a merge key
}

// fields are a mapping's, with those that merge keys (<<) bring. As for kubectl (go.yaml.in/yaml/v2 in
// sigs.k8s.io/yaml), the last one of a name counts, merge keys included, and of several mappings after one << the
// first. Fields that the mapping itself has twice stay, for the decoder to reject.
func (d *document) fields(n *yaml.Node) (list []field, err *encodeError) {
	put := func(f field) {
		list = slices.DeleteFunc(list, func(old field) bool {
			return (old.merged || f.merged) && old.key.Value == f.key.Value
		})
		list = append(list, f)
	}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.ShortTag() != "!!merge" {
			put(field{key: key, value: value})
			continue
		}
		sources := []*yaml.Node{value}
		if value.Kind == yaml.SequenceNode {
			sources = slices.Clone(value.Content)
			slices.Reverse(sources)
		}
		for _, source := range sources {
			merged, err := d.mergedFields(source)
			if err != nil {
				return nil, err
			}
			for _, f := range merged {
				put(field{f.key, f.value, true})
			}
		}
	}
	return list, nil
}

// mergedFields are the fields of a mapping that stands after a merge key.
func (d *document) mergedFields(source *yaml.Node) ([]field, *encodeError) {
	of := source
	if source.Kind == yaml.AliasNode {
		of = source.Alias
	}
	if of.Kind != yaml.MappingNode {
		return nil, &encodeError{source.Line, "a merge key << takes a mapping, or a list of them"}
	}
	if d.open[of] {
		return nil, &encodeError{source.Line, "the merge key << stands for something that it is a part of"}
	}
	d.merges++
	if d.merges > maxMerges {
		return nil, &encodeError{source.Line,
			fmt.Sprintf("the document has more than %d merge keys with its aliases", maxMerges)}
	}
	d.open[of] = true
	defer delete(d.open, of)
	return d.fields(of)
}

func (d *document) scalar(n *yaml.Node) *encodeError {
	switch n.ShortTag() {
	case "!!null":
		d.text("null")
		return nil
	case "!!bool", "!!int", "!!float":
		var v any
		if err := n.Decode(&v); err != nil {
			return &encodeError{n.Line, "not YAML: " + err.Error()}
		}
		d.value(v)
	default: // a date is a string, as it is everywhere in Kubernetes
		d.value(n.Value)
	}
	return nil
}

func (d *document) text(s string) { d.json = append(d.json, s...) }

func (d *document) value(v any) {
	b, err := json.Marshal(v)
	if err != nil { // .inf and .nan
		b = []byte(strconv.Quote(fmt.Sprint(v)))
	}
	d.json = append(d.json, b...)
}

var step = regexp.MustCompile(`[^.\[\]]+|\[\d+\]`)

// line is the line of a field such as spec.containers[0].ports, or of the nearest thing around it that is there.
func (d *document) line(path string) int {
	n, line := d.root, d.root.Line
	for _, s := range step.FindAllString(path, -1) {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		next := (*yaml.Node)(nil)
		if index, ok := strings.CutPrefix(s, "["); ok && n.Kind == yaml.SequenceNode {
			if i, err := strconv.Atoi(strings.TrimSuffix(index, "]")); err == nil && i < len(n.Content) {
				next = n.Content[i]
				line = next.Line
			}
		} else if n.Kind == yaml.MappingNode {
			for i := 0; i < len(n.Content); i += 2 {
				if n.Content[i].Value == s {
					next = n.Content[i+1]
					line = n.Content[i].Line
				}
			}
		}
		if next == nil {
			return line
		}
		n = next
	}
	return line
}
