package tools

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"countersign/audit"
)

// renderTable writes a server-side Table as aligned columns, the columns of
// default width only, as kubectl get does.
func renderTable(responses []Response) (string, error) {
	r := responses[0]
	t := table{namespaces: r.Action.Resource.Namespaced && r.Action.Namespace == ""}
	if err := t.read(r.Body); err != nil {
		return "", fmt.Errorf("reading the table: %w", err)
	}
	if t.fetched == 0 {
		return noneFound(r.Action), nil
	}
	return t.list(r.Action, t.fetched, t.meta), nil
}

// table is what is shown of a metav1.Table. It is read token by token: most of one
// is cells, many of which nobody sees, and a library that makes values of all of
// them takes three times as long.
type table struct {
	namespaces bool // the first column is the namespace
	meta       metav1.ListMeta
	columns    []column
	head       []string // of those that are shown
	fetched    int      // rows
	full       bool
	rows
}

type column struct {
	name     string
	priority int64
	secret   bool // a custom resource can have a column of passwords
}

func (t *table) read(body []byte) error {
	d := tokens(body)
	kind := ""
	var early jsontext.Value // rows, where they come before the columns
	err := members(d, func(name string) (err error) {
		switch {
		case name == "kind":
			kind, err = text(d)
		case name == "metadata":
			err = decode(d, &t.meta)
		case name == "columnDefinitions":
			err = t.readColumns(d)
		case name == "rows" && t.columns != nil:
			err = t.readRows(d)
		case name == "rows":
			early, err = d.ReadValue()
			early = early.Clone()
		default:
			err = d.SkipValue()
		}
		return err
	})
	if err == nil && early != nil {
		err = t.readRows(tokens(early))
	}
	if err == nil && kind != "Table" {
		err = fmt.Errorf("the API server answered with %s", kind)
	}
	return err
}

// tokens takes what encoding/json takes.
func tokens(data []byte) *jsontext.Decoder {
	return jsontext.NewDecoder(bytes.NewBuffer(data), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

func (t *table) readColumns(d *jsontext.Decoder) error {
	if t.namespaces {
		t.head = append(t.head, "NAMESPACE")
	}
	return elements(d, func() error {
		var c column
		err := members(d, func(name string) (err error) {
			switch name {
			case "name":
				c.name, err = text(d)
			case "priority":
				err = decode(d, &c.priority)
			default:
				err = d.SkipValue()
			}
			return err
		})
		c.secret = audit.MaskNamed(c.name, likeASecret) == audit.Masked
		if c.priority == 0 {
			t.head = append(t.head, strings.ToUpper(cellLine(c.name)))
		}
		t.columns = append(t.columns, c)
		return err
	})
}

func (t *table) readRows(d *jsontext.Decoder) error {
	t.add(t.head)
	var cells []string // add copies them
	return elements(d, func() error {
		cells = cells[:0]
		if t.namespaces {
			cells = append(cells, "?")
		}
		err := members(d, func(name string) error {
			switch {
			case name == "cells":
				i := -1
				return elements(d, func() error {
					if i++; i >= len(t.columns) || t.columns[i].priority != 0 {
						return d.SkipValue()
					}
					cell, err := t.columns[i].cell(d)
					cells = append(cells, cell)
					return err
				})
			case name == "object" && t.namespaces: // which the server sends for this
				var object metav1.PartialObjectMetadata
				err := decode(d, &object)
				cells[0] = cmp.Or(object.Namespace, cells[0])
				return err
			}
			return d.SkipValue()
		})
		t.fetched++
		t.full = t.full || !t.add(cells)
		return err
	})
}

// cell reads one cell, as it is shown.
func (c *column) cell(d *jsontext.Decoder) (shown string, err error) {
	if d.PeekKind() == '"' {
		shown, err = text(d)
		shown = cellLine(shown)
	} else {
		var value any
		err = decode(d, &value)
		shown = cellText(value)
	}
	if c.secret {
		shown = audit.MaskNamed(c.name, shown)
	}
	return shown, err
}

// members calls f with the name of each member of the object that comes next. f
// reads or skips the value.
func members(d *jsontext.Decoder, f func(name string) error) error {
	return within(d, '{', func() error {
		name, err := text(d)
		if err != nil {
			return err
		}
		return f(name)
	})
}

// elements calls f for each element of the array that comes next. f reads or skips it.
func elements(d *jsontext.Decoder, f func() error) error { return within(d, '[', f) }

// within calls f until the object or array that comes next ends. null is an empty one.
func within(d *jsontext.Decoder, begin jsontext.Kind, f func() error) error {
	switch t, err := d.ReadToken(); {
	case err != nil || t.Kind() == 'n':
		return err
	case t.Kind() != begin:
		return fmt.Errorf("there is %s where %s is expected", t.Kind(), begin)
	}
	for {
		switch d.PeekKind() {
		case '}', ']':
			_, err := d.ReadToken()
			return err
		}
		if err := f(); err != nil {
			return err
		}
	}
}

// text reads a text.
func text(d *jsontext.Decoder) (string, error) {
	t, err := d.ReadToken()
	if err == nil && t.Kind() != '"' {
		err = fmt.Errorf("there is %s where text is expected", t.Kind())
	}
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

func decode(d *jsontext.Decoder, into any) error {
	value, err := d.ReadValue()
	if err != nil {
		return err
	}
	return kjson.UnmarshalCaseSensitivePreserveInts(value, into)
}

// rows are lines of cells that become aligned columns. The first is the head.
type rows struct {
	lines  [][]string
	widths []int // of the columns, in characters
	bytes  int
	cut    bool // a cell is not whole
}

// add takes one row, and reports whether one more could be shown.
func (r *rows) add(cells []string) bool {
	for i, cell := range cells {
		width := utf8.RuneCountInString(cell)
		if i == len(r.widths) {
			r.widths = append(r.widths, 0)
		}
		r.widths[i] = max(r.widths[i], width)
		r.cut = r.cut || width == maxCell+len("...") && strings.HasSuffix(cell, "...")
		r.bytes += len(cell) + 1
	}
	r.lines = append(r.lines, slices.Clone(cells))
	return r.bytes <= maxBytes
}

// table is as many whole lines of what was added as may be shown, and how many rows they are.
func (r *rows) table() (text string, shown int) {
	const gap = 2
	var b strings.Builder
	b.Grow(2 * r.bytes)
	for i, cells := range r.lines {
		whole := b.Len()
		for j, cell := range cells {
			b.WriteString(cell)
			if j < len(cells)-1 {
				b.WriteString(strings.Repeat(" ", r.widths[j]-utf8.RuneCountInString(cell)+gap))
			}
		}
		b.WriteByte('\n')
		if b.Len() > maxBytes {
			return b.String()[:whole], max(i-1, 0)
		}
	}
	return b.String(), len(r.lines) - 1
}
