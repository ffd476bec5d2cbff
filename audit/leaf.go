package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"
)

// MaxLeaf is the most bytes that a record may have: entry bundles of C2SP
// tlog-tiles write the length of a leaf with 16 bits.
const MaxLeaf = 1<<16 - 1

// head is how every leaf begins.
var head = fmt.Sprintf(`{"v":%d,"seq":`, Version)

// Number gives a leaf that was encoded with the number 0 its own.
func Number(leaf []byte, seq uint64) []byte {
	numbered := make([]byte, 0, len(leaf)+20)
	numbered = strconv.AppendUint(append(numbered, head...), seq, 10)
	return append(numbered, leaf[len(head)+1:]...)
}

// Seq is the number of a leaf; ok is false where it is no leaf of ours.
func Seq(leaf []byte) (seq uint64, ok bool) {
	rest, ok := bytes.CutPrefix(leaf, []byte(head))
	digits, _, found := bytes.Cut(rest, []byte(","))
	if !ok || !found || len(digits) > 20 {
		return 0, false
	}
	seq, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil || strconv.FormatUint(seq, 10) != string(digits) {
		return 0, false
	}
	return seq, true
}

// Leaf is the record as it is stored: its JSON. A record that is too long for a
// leaf is made shorter and says so; what is long, a manifest for one, is in the
// payload as well.
func Leaf(r *Record) ([]byte, error) {
	for _, shorten := range []func(*Record){nil, withoutArgs, shortLists, actions, bare} {
		if shorten != nil {
			short := *r
			r = &short
			shorten(r)
		}
		leaf, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("encoding record %s: %w", r.ID, err)
		}
		if len(leaf) <= MaxLeaf-20 { // room for a number
			return leaf, nil
		}
	}
	return nil, fmt.Errorf("encoding record %s: it has more than %d bytes", r.ID, MaxLeaf)
}

func withoutArgs(r *Record) {
	if r.Tool != nil && len(r.Tool.Args) > 0 {
		data, _ := json.Marshal(r.Tool.Args)
		r.Tool = &Tool{Name: r.Tool.Name, Args: map[string]any{"omitted": fmt.Sprintf("%d bytes", len(data))}}
	}
}

// Split gives a record of many Actions as several, so that each fits a leaf with
// all that it says of them. id makes the ids of those that follow the first.
func Split(r Record, id func() string) []Record {
	if len(r.Actions) <= MaxActions {
		return []Record{r}
	}
	var parts []Record
	for actions := range slices.Chunk(r.Actions, MaxActions) {
		part := r
		if len(parts) > 0 {
			part = Record{V: r.V, ID: id(), Time: r.Time, Type: r.Type, Op: r.Op, Outcome: r.Outcome, Principal: r.Principal, Session: r.Session, Node: r.Node}
			if r.Tool != nil {
				part.Tool = &Tool{Name: r.Tool.Name}
			}
			if r.Policy != nil {
				part.Policy = &Policy{Digest: r.Policy.Digest}
			}
		}
		part.Actions = actions
		parts = append(parts, part)
	}
	return parts
}

// MaxActions is how many Actions one record tells of; Split makes more of it. The longest names that
// Kubernetes has make an Action of 900 bytes.
const MaxActions = 50

// Of a record that is too long: how many items of a list, and how many bytes of a
// text as JSON has it, stay.
const (
	shortList = 50
	shortText = 500
)

func shortLists(r *Record) {
	if r.Principal != nil {
		p := *r.Principal
		p.Groups = shortTexts(p.Groups)
		r.Principal = &p
	}
	if r.Policy != nil {
		p := *r.Policy
		p.Rules, p.Risks, p.Reason = shortTexts(p.Rules), shortTexts(p.Risks), shorter(p.Reason)
		if p.Shadow != nil {
			p.Shadow = &Shadow{Decision: p.Shadow.Decision, Rules: shortTexts(p.Shadow.Rules), Reason: shorter(p.Shadow.Reason)}
		}
		r.Policy = &p
	}
	if r.Approval != nil {
		a := *r.Approval
		a.By, a.Sets, a.Needs, a.Channels, a.Fields = shortTexts(a.By), shortTexts(a.Sets), shortTexts(a.Needs), shortTexts(a.Channels), shortTexts(a.Fields)
		a.Reason = shorter(a.Reason)
		r.Approval = &a
	}
	if r.Error != nil {
		r.Error = &Error{Type: shorter(r.Error.Type), Message: shorter(r.Error.Message)}
	}
	if r.Checkpoint != nil {
		c := *r.Checkpoint
		c.Anchors, c.Failed = shortTexts(c.Anchors), shortTexts(c.Failed)
		r.Checkpoint = &c
	}
	if r.Evidence != nil {
		e := *r.Evidence
		e.Detail = shorter(e.Detail)
		r.Evidence = &e
	}
}

func shortTexts(list []string) []string {
	if list = slices.Clone(list); len(list) > shortList {
		list = append(list[:shortList], "and "+strconv.Itoa(len(list)-shortList)+" more")
	}
	for i := range list {
		list[i] = shorter(list[i])
	}
	return list
}

func shorter(text string) string {
	bytes := 0
	for i, c := range text {
		switch {
		case c < ' ', c == '<', c == '>', c == '&', c == '\u2028', c == '\u2029', c == utf8.RuneError:
			bytes += len(`\u0000`)
		case c == '"', c == '\\':
			bytes += 2
		default:
			bytes += utf8.RuneLen(c)
		}
		if bytes > shortText {
			return text[:i] + fmt.Sprintf(" [%d more bytes]", len(text)-i)
		}
	}
	return text
}

// actions leaves what says what happened and what was asked of clusters.
func actions(r *Record) {
	r.Source, r.Approval, r.Evidence = nil, nil, nil
	if r.Policy != nil {
		r.Policy = &Policy{Digest: r.Policy.Digest, Decision: shorter(r.Policy.Decision)}
	}
	if p := r.Principal; p != nil {
		p := *p
		p.Issuer, p.Subject, p.Username, p.Client, p.OnBehalfOf, p.Groups = shorter(p.Issuer), shorter(p.Subject), shorter(p.Username), shorter(p.Client), shorter(p.OnBehalfOf), nil
		r.Principal = &p
	}
	if r.Tool != nil {
		r.Tool = &Tool{Name: shorter(r.Tool.Name)}
	}
	r.Session = shorter(r.Session)
}

// bare leaves nothing that somebody else could make long.
func bare(r *Record) {
	r.MoreActions += len(r.Actions)
	r.Actions = nil
}
