package tools

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/jsonschema-go/jsonschema"
	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

var pods = action.Resource{Version: "v1", Resource: "pods", Kind: "Pod", Namespaced: true}

const (
	// margin is fetched before what is shown of a log, so that no secret begins
	// in what was cut off and goes on, unrecognized, in what is shown.
	margin = 8 << 10
	// maxSearched is how much of a log is searched. All of it is masked before,
	// which takes seconds for a few MiB that were written to make it slow.
	maxSearched = 1 << 20
	maxGrep     = 200
)

type getPodLogsInput struct {
	Namespace    string `json:"namespace"`
	Pod          string `json:"pod"`
	Container    string `json:"container,omitempty"`
	Previous     bool   `json:"previous,omitempty" jsonschema:"the container's previous run"`
	TailLines    int64  `json:"tail_lines,omitempty" jsonschema:"how many of the last lines are read (default 100; with grep 5000)"`
	SinceSeconds int64  `json:"since_seconds,omitempty" jsonschema:"only newer than this"`
	Grep         string `json:"grep,omitempty" jsonschema:"only lines that match this RE2 expression"`
	Timestamps   bool   `json:"timestamps,omitempty"`
}

func getPodLogs() *Tool {
	return define(Tool{
		Name:        "get_pod_logs",
		Title:       "Get pod logs",
		Description: "Shows the last lines of a container's log.",
		Scopes:      []action.Scope{{Verbs: []string{action.Get}, Resource: "pods", Subresource: "log"}},
		Reads:       []action.Scope{{Verbs: []string{action.Get}, Resource: "pods"}},
	}, func(s *jsonschema.Schema) {
		between(s, "tail_lines", 1, maxLines)
		between(s, "since_seconds", 1, 7*24*3600)
		s.Properties["grep"].MaxLength = jsonschema.Ptr(maxGrep)
	}, func(ctx context.Context, r Reader, cluster string, in getPodLogsInput) (Call, error) {
		a := logAction(cluster, in.Namespace, in.Pod)
		if err := checkTarget(a); err != nil {
			return Call{}, err
		}
		a.Options = action.Options{
			Container: in.Container, Previous: in.Previous, TailLines: in.TailLines, SinceSeconds: in.SinceSeconds,
			Timestamps: in.Timestamps, Grep: in.Grep, TailBytes: maxBytes + margin,
		}
		if in.Grep != "" {
			if err := checkExpression(in.Grep); err != nil {
				return Call{}, err
			}
			a.Options.TailBytes = maxSearched
		}
		if in.TailLines == 0 {
			a.Options.TailLines = defaultLines
			if in.Grep != "" {
				a.Options.TailLines = maxLines
			}
		}
		if in.Container == "" {
			// Where the pod may not be read it is left to the API server, which finds
			// the container of a pod that has one.
			var argument *ArgumentError
			container, err := defaultContainer(ctx, r, cluster, in.Namespace, in.Pod)
			if errors.As(err, &argument) {
				return Call{}, err
			}
			a.Options.Container = container
		}
		return read(a), nil
	}, renderLog)
}

// maxExpression bounds an expression, in instructions: short ones can be made
// that take a minute for a megabyte.
const maxExpression = 500

func checkExpression(text string) error {
	parsed, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return BadArgument("grep is not an RE2 expression: %v; write a plain word, or a|b for either", err)
	}
	if program, err := syntax.Compile(parsed.Simplify()); err != nil || len(program.Inst) > maxExpression {
		return BadArgument("grep is too costly an expression: write it with fewer repetitions, or a plain word")
	}
	return nil
}

func logAction(cluster, namespace, pod string) action.Action {
	return action.Action{Cluster: cluster, Verb: action.Get, Resource: pods, Subresource: "log", Namespace: namespace, Name: pod}
}

// defaultContainer is the one that kubectl takes where none is named: the one
// that the pod's annotation names, or the only one.
func defaultContainer(ctx context.Context, r Reader, cluster, namespace, name string) (string, error) {
	response, err := r.Read(ctx, action.Action{Cluster: cluster, Verb: action.Get, Resource: pods, Namespace: namespace, Name: name})
	if err != nil {
		return "", err
	}
	var pod corev1.Pod
	if err := kjson.UnmarshalCaseSensitivePreserveInts(response.Body, &pod); err != nil {
		return "", fmt.Errorf("reading the pod: %w", err)
	}
	var names, others []string
	for _, c := range pod.Spec.Containers {
		names = append(names, c.Name)
	}
	for _, c := range pod.Spec.InitContainers {
		others = append(others, c.Name)
	}
	for _, c := range pod.Spec.EphemeralContainers {
		others = append(others, c.Name)
	}
	if named := pod.Annotations["kubectl.kubernetes.io/default-container"]; slices.Contains(names, named) {
		return named, nil
	}
	if len(names) == 1 {
		return names[0], nil
	}
	text := fmt.Sprintf("pod %s has several containers: give container, one of %s", name, strings.Join(names, ", "))
	if others != nil {
		text += "; init and ephemeral containers are " + strings.Join(others, ", ")
	}
	return "", BadArgument("%s", text)
}

// renderLog shows the end of what was fetched, whole lines.
func renderLog(responses []Response) (string, error) {
	r := responses[0]
	if r.Action.Options.Grep != "" {
		return grepLog(r)
	}
	lines, whole := logLines(r)
	switch {
	case len(r.Body) == 0 && r.Action.Options.SinceSeconds > 0:
		return fmt.Sprintf("The log has no lines in the last %d seconds.", r.Action.Options.SinceSeconds), nil
	case len(r.Body) == 0:
		return "The log is empty.", nil
	case looksBinary(r.Body):
		return binaryLog(r), nil
	}
	text := lastBytes(lines, maxBytes)
	if len(text) < len(lines) || !whole {
		return fmt.Sprintf("(the last %d of %d bytes; narrow with tail_lines, since_seconds or grep)\n%s", len(text), int64(len(r.Body))+r.Omitted, text), nil
	}
	if n := r.Action.Options.TailLines; n > 0 && int64(strings.Count(text, "\n")) >= n {
		text = fmt.Sprintf("(the last %d lines; see more with tail_lines, or search with grep)\n%s", n, text)
	}
	return text, nil
}

// grepLog shows the lines that match, as many of the last as fit. What is
// searched is masked already, or an expression could feel for a secret.
func grepLog(r Response) (string, error) {
	expression, err := regexp.Compile(r.Action.Options.Grep)
	if err != nil {
		return "", fmt.Errorf("reading grep: %w", err)
	}
	if looksBinary(r.Body) {
		return binaryLog(r), nil
	}
	text, whole := logLines(r)
	var matching strings.Builder
	lines, matches := 0, 0
	for line := range strings.Lines(text) {
		lines++
		if line = strings.TrimSuffix(line, "\n"); expression.MatchString(line) {
			matches++
			matching.WriteString(line + "\n")
		}
	}
	note := fmt.Sprintf("%d of %d lines match", matches, lines)
	switch {
	case !whole:
		note += fmt.Sprintf("; only the last %d of %d bytes were searched: narrow with since_seconds", len(r.Body), int64(len(r.Body))+r.Omitted)
	case int64(lines) >= r.Action.Options.TailLines:
		note += "; there may be earlier lines: see tail_lines"
	}
	shown := lastBytes(matching.String(), maxBytes)
	if len(shown) < matching.Len() {
		note += fmt.Sprintf("; the last %d of them are shown: narrow with grep or since_seconds", strings.Count(shown, "\n"))
	}
	return "(" + note + ")\n" + shown, nil
}

// logLines is the log as text, masked, from the first whole line on. Masked
// comes first: what a cut leaves of a secret is not known for one.
func logLines(r Response) (text string, whole bool) {
	text = audit.MaskText(plainText(r.Body))
	if r.Omitted == 0 {
		return text, true
	}
	if i := strings.IndexByte(text, '\n'); i >= 0 && i < len(text)-1 {
		return text[i+1:], false
	}
	// A single line without its beginning: what could be the rest of a secret goes.
	text = text[min(margin, len(text)):]
	return strings.ToValidUTF8(text, ""), false
}

// lastBytes cuts a text from the front, at a line if there is one.
func lastBytes(text string, most int) string {
	if len(text) <= most {
		return text
	}
	tail := text[len(text)-most:]
	if text[len(text)-most-1] == '\n' {
		return tail
	}
	if i := strings.IndexByte(tail, '\n'); i >= 0 && i < len(tail)-1 {
		return tail[i+1:]
	}
	for len(tail) > 0 && !utf8.RuneStart(tail[0]) { // a single line, cut within a character
		tail = tail[1:]
	}
	return tail
}

// terminal are the sequences by which programs colour what they write and move
// the cursor (ECMA-48).
var terminal = regexp.MustCompile(`\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[@-_]`)

// plainText is what somebody would read of a log: without control characters
// and those that show nothing, in which a text can hide from people but not
// from a model. Bytes that are no UTF-8 become U+FFFD.
func plainText(data []byte) string {
	text := strings.ToValidUTF8(string(data), "\uFFFD")
	if strings.Contains(text, "\x1b") {
		text = terminal.ReplaceAllString(text, "")
	}
	text = strings.ReplaceAll(text, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return r
		case r == '\r':
			return '\n'
		case unicode.In(r, unicode.Cc, unicode.Cf):
			return -1
		}
		return r
	}, text)
}

// looksBinary reports whether most of the bytes are what no text has.
func looksBinary(data []byte) bool {
	odd := 0
	for rest := data; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		if r == utf8.RuneError && n == 1 || r < ' ' && r != '\n' && r != '\t' && r != '\r' && r != '\x1b' {
			odd++
		}
		rest = rest[n:]
	}
	return odd*2 > len(data)
}

func binaryLog(r Response) string {
	return fmt.Sprintf("The log looks binary: %d bytes, which are not shown.", int64(len(r.Body))+r.Omitted)
}
