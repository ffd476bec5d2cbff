// Package strictyaml reads the YAML files that people write for Countersign,
// configuration and policy: unknown keys, duplicate keys and values of the
// wrong type are errors, all are reported at once, and each with its line.
//
// It owns reading and line numbers. What a value may be is the business of the
// room that declares the struct. Manifests are not read here: they are read as
// the API server would read them.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxBytes bounds one file. People do not write more; a decoder should not be
// asked to look.
const MaxBytes = 1 << 20

// maxUnfolded bounds what the documents of one file stand for together, written
// out with their aliases, in bytes: a short file can repeat a long text without end.
const maxUnfolded = 16 << 20

// ReadFile reads a file of a folder that people write files into: a regular one
// of at most MaxBytes, so that neither a pipe nor a device keeps the reader. A
// link is followed: that is how Kubernetes mounts a ConfigMap.
func ReadFile(dir fs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(dir, name)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", name)
	}
	file, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxBytes+1))
	if err == nil && len(data) > MaxBytes {
		err = fmt.Errorf("%s is larger than %d bytes", name, MaxBytes)
	}
	return data, err
}

// Unfolded is the size of what a node stands for with its aliases written out,
// in bytes, or just more than the limit.
func Unfolded(node *yaml.Node, limit int) int {
	return unfolded(node, limit, map[*yaml.Node]int{})
}

func unfolded(node *yaml.Node, limit int, sizes map[*yaml.Node]int) int {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if size, known := sizes[node]; known {
		return size
	}
	sizes[node] = 0 // for an anchor within itself, which the decoder refuses
	size := len(node.Value) + 1
	for _, part := range node.Content {
		size = min(size+unfolded(part, limit, sizes), limit+1)
	}
	sizes[node] = size
	return size
}

// Problem is one mistake in a file.
type Problem struct {
	File string
	Line int // 0 when the mistake has no line, as with an empty file
	Text string
	// First is where the same thing was said before; nil when it was not.
	First *Problem
}

// Error reads "FILE:LINE: TEXT", and ends in ", at FILE:LINE" where there is a First.
func (p Problem) Error() string {
	text := p.place() + ": " + p.Text
	if p.First != nil {
		text += ", at " + p.First.place()
	}
	return text
}

func (p Problem) place() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// Problems are all the mistakes of a file or of several, one a line.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.Error()
	}
	return strings.Join(lines, "\n")
}

// In names the files with the folder that they were read from.
func (p Problems) In(folder string) Problems {
	out := make(Problems, len(p))
	for i, problem := range p {
		problem.File = filepath.Join(folder, problem.File)
		if problem.First != nil {
			first := *problem.First
			first.File = filepath.Join(folder, first.File)
			problem.First = &first
		}
		out[i] = problem
	}
	return out
}

// OrNil is the error to return: nil when there is no problem.
func (p Problems) OrNil() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// Document is one decoded YAML document; it remembers where its values stood.
type Document struct {
	File string
	node yaml.Node
}

// Problem makes a Problem at the value that path leads to: strings are keys,
// ints are list indexes. Where the value is absent, the line is that of the
// nearest part of the path that is there.
func (d *Document) Problem(path []any, format string, args ...any) Problem {
	node, line := &d.node, d.node.Line
	if node.Kind == yaml.DocumentNode && len(node.Content) == 1 {
		node = node.Content[0]
	}
	for _, step := range path {
		next, at := child(node, step)
		if next == nil {
			break
		}
		node, line = next, at
	}
	return Problem{File: d.File, Line: line, Text: fmt.Sprintf(format, args...)}
}

// Empty reports every key whose value is null, "", [] or {}. Where an absent key
// means "anything", one that was begun and not finished must not mean it too.
func (d *Document) Empty() Problems { return empty(d.File, &d.node) }

func empty(file string, node *yaml.Node) (problems Problems) {
	for i, part := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 1 {
			null := part.Kind == yaml.ScalarNode && (part.Tag == "!!null" || part.Value == "")
			if null || (part.Kind == yaml.SequenceNode || part.Kind == yaml.MappingNode) && len(part.Content) == 0 {
				problems = append(problems, Problem{File: file, Line: node.Content[i-1].Line, Text: fmt.Sprintf("key %q is empty: fill it in or leave it out", node.Content[i-1].Value)})
				continue
			}
		}
		problems = append(problems, empty(file, part)...)
	}
	return problems
}

// Int is a whole number; the YAML library alone takes 1.9 for 1.
type Int int

// UnmarshalYAML implements yaml.Unmarshaler.
func (n *Int) UnmarshalYAML(node *yaml.Node) error {
	if node.Tag != "!!int" {
		return &yaml.TypeError{Errors: []string{fmt.Sprintf("line %d: cannot unmarshal %s `%s` into int", node.Line, node.Tag, node.Value)}}
	}
	return node.Decode((*int)(n))
}

func child(node *yaml.Node, step any) (*yaml.Node, int) {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch step := step.(type) {
	case string:
		if node.Kind != yaml.MappingNode {
			return nil, 0
		}
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == step {
				return node.Content[i+1], node.Content[i].Line
			}
		}
	case int:
		if node.Kind == yaml.SequenceNode && step < len(node.Content) {
			return node.Content[step], node.Content[step].Line
		}
	}
	return nil, 0
}

// Decode reads every document of a file. newValue gives a fresh pointer to
// decode each into. The error is Problems.
func Decode(file string, data []byte, newValue func() any) ([]*Document, error) {
	if len(data) > MaxBytes {
		return nil, Problems{{File: file, Text: fmt.Sprintf("is %d bytes; %d is the most that is read", len(data), MaxBytes)}}
	}
	values := yaml.NewDecoder(bytes.NewReader(data))
	values.KnownFields(true)
	nodes := yaml.NewDecoder(bytes.NewReader(data))
	var documents []*Document
	var problems Problems
	left := maxUnfolded
	for {
		document := &Document{File: file}
		if err := nodes.Decode(&document.node); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, append(problems, translate(file, err)...)
		}
		if left -= Unfolded(&document.node, left); left < 0 {
			return nil, append(problems, document.Problem(nil, "unfolds to more than %d bytes: write it without so many aliases", maxUnfolded))
		}
		if err := values.Decode(newValue()); err != nil {
			problems = append(problems, translate(file, err)...)
			var typeError *yaml.TypeError
			if !errors.As(err, &typeError) {
				return nil, problems // the decoder cannot go on after a syntax error
			}
		}
		documents = append(documents, document)
	}
	if len(documents) == 0 {
		problems = append(problems, Problem{File: file, Text: "is empty"})
	}
	return documents, problems.OrNil()
}

var (
	atLine    = regexp.MustCompile(`(?s)^(?:yaml: )?line (\d+): (.*)$`)
	unknown   = regexp.MustCompile(`(?s)^field (.*) not found in type .+$`)
	wrongType = regexp.MustCompile("(?s)^cannot unmarshal !*(.*?) (?:`(.*)` )?into (.+)$")
	words     = map[string]string{"str": "text", "int": "a number", "seq": "a list", "map": "a mapping", "bool": "true or false", "float": "a number"}
)

// translate turns the YAML library's errors, which name Go types, into words
// for the person who wrote the file.
func translate(file string, err error) Problems {
	texts := []string{err.Error()}
	var typeError *yaml.TypeError
	if errors.As(err, &typeError) {
		texts = typeError.Errors
	}
	var problems Problems
	for _, text := range texts {
		p := Problem{File: file, Text: strings.TrimPrefix(text, "yaml: ")}
		if m := atLine.FindStringSubmatch(text); m != nil {
			p.Line, _ = strconv.Atoi(m[1])
			p.Text = m[2]
		}
		if m := unknown.FindStringSubmatch(p.Text); m != nil {
			p.Text = fmt.Sprintf("unknown key %q", m[1])
		} else if m := wrongType.FindStringSubmatch(p.Text); m != nil {
			p.Text = fmt.Sprintf("%s where %s is expected", found(m[1], m[2]), expected(m[3]))
		}
		problems = append(problems, p)
	}
	return problems
}

func found(tag, value string) string {
	if value != "" {
		return strconv.Quote(value)
	}
	if word := words[tag]; word != "" {
		return word
	}
	return tag
}

func expected(goType string) string {
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case goType == "time.Duration":
		return `a duration such as "45s"`
	case strings.HasPrefix(goType, "map["), strings.HasPrefix(goType, "struct {"), strings.Contains(goType, "."):
		return "a mapping"
	case strings.HasPrefix(goType, "int"), strings.HasPrefix(goType, "uint"):
		return "a whole number"
	case goType == "bool":
		return "true or false"
	}
	return "text"
}
