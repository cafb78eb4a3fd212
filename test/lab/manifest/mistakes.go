package manifest

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/json"
)

// Bounds of the search for mistakes in one document.
const (
	// maxMistakes are the values of a wrong type that are looked for.
	maxMistakes = 20
	// maxTries are the values that are left out one by one to find the one that an object's own decoding rejects.
	maxTries = 2000
)

// decode reads the document into an object and tells whether it can be used. Everything that is wrong with it is noted:
// a value of a wrong type is left out for the others to be found.
func (l *loader) decode(p place, into metav1.Object) bool {
	doc := p.doc
	for range maxMistakes {
		strict, err := doc.into(into)
		if err == nil {
			l.unknownFields(p, strict, into.GetUID() != "")
			return true
		}
		bad, text := doc.culprit(into, err)
		if bad == nil {
			l.wrong(p, "%v", err)
			return false
		}
		problem := p.at("%s", doc.path(bad)).problem("%s", text)
		problem.Line = bad.Line // of an alias, not where it is used
		l.problems = append(l.problems, problem)
		if doc.leaveOut(bad) != nil {
			return false
		}
	}
	return false
}

// into decodes the document's JSON into a cleared object.
func (d *document) into(object any) (strict []error, err error) {
	reflect.ValueOf(object).Elem().SetZero()
	return json.UnmarshalStrict(d.json, object)
}

// unknownFields notes fields that an object does not have. One that an API server has stored has no mistyped fields:
// it comes from a newer Kubernetes.
func (l *loader) unknownFields(p place, strict []error, stored bool) {
	for _, err := range strict {
		var field json.FieldError
		if errors.As(err, &field) {
			note, what := l.wrong, err.Error()
			if stored {
				note = l.warn
			}
			what, _, _ = strings.Cut(what, ` "`)
			note(p.at("%s", field.FieldPath()), "%s", what)
		} else {
			l.wrong(p, "%v", err)
		}
	}
}

// culprit is the value that keeps a document from being decoded, and what is wrong with it; nil when no single value
// does.
func (d *document) culprit(object any, err error) (*yaml.Node, string) {
	var mismatch *stdjson.UnmarshalTypeError
	if errors.As(err, &mismatch) {
		n := d.nodeAt(int(mismatch.Offset))
		return n, typeMistake(n, mismatch)
	}
	// An object's own decoding, as of a time, does not say where it failed.
	tries := 0
	for i := range d.marks {
		n := d.marks[i].node
		if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
			continue
		}
		tries++
		if tries > maxTries {
			break
		}
		without := document{file: d.file, root: d.root, open: map[*yaml.Node]bool{}}
		if without.leaveOut(n) != nil {
			break
		}
		_, then := without.into(object)
		if then == nil || then.Error() != err.Error() {
			return n, err.Error()
		}
	}
	return nil, ""
}

// typeMistake says what a value is and what it should be.
func typeMistake(n *yaml.Node, mismatch *stdjson.UnmarshalTypeError) string {
	is, _, _ := strings.Cut(mismatch.Value, " ") // "number 1.5"
	if mismatch.Type.Kind() == reflect.String && n.Kind == yaml.ScalarNode {
		article := map[string]string{"bool": "a boolean"}[is]
		if article == "" {
			article = "a " + is
		}
		return fmt.Sprintf("%s is %s, and a string is needed; quote it: %q", n.Value, article, n.Value)
	}
	return fmt.Sprintf("a %s is not allowed here", is)
}

// leaveOut makes a value null, which decodes as if it were absent.
func (d *document) leaveOut(n *yaml.Node) error {
	if d.left == nil {
		d.left = map[*yaml.Node]bool{}
	}
	d.left[n] = true
	d.json, d.marks = nil, nil
	if err := d.encode(d.root); err != nil {
		return errors.New(err.text)
	}
	return nil
}

// nodeAt is the value that a byte of the JSON is of.
func (d *document) nodeAt(offset int) *yaml.Node {
	n := d.root
	for _, m := range d.marks {
		if m.offset >= offset {
			break
		}
		n = m.node
	}
	return n
}

// path names a value as in spec.containers[0].ports; the first place where an alias leads.
func (d *document) path(wanted *yaml.Node) string {
	var find func(n *yaml.Node, path string) (string, bool)
	find = func(n *yaml.Node, path string) (string, bool) {
		if n == wanted {
			return path, true
		}
		switch n.Kind {
		case yaml.SequenceNode:
			for i, item := range n.Content {
				if found, ok := find(item, fmt.Sprintf("%s[%d]", path, i)); ok {
					return found, true
				}
			}
		case yaml.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				below := strings.TrimPrefix(path+"."+n.Content[i].Value, ".")
				if found, ok := find(n.Content[i+1], below); ok {
					return found, true
				}
			}
		}
		return "", false
	}
	found, _ := find(d.root, "")
	return found
}

// sorted are problems in the order of files and lines, each once.
func sorted(problems []Problem) []Problem {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	return slices.Compact(problems)
}
