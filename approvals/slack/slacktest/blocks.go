package slacktest

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// Block is one block of Block Kit, as JSON decodes it.
type Block = map[string]any

type surface int

const (
	surfaceMessage surface = iota
	surfaceModal
)

// Slack's limits, in characters unless they say otherwise.
const (
	maxText        = 3000
	maxID          = 255
	maxMessageText = 12000 // of a message's blocks together; not documented, near what was measured
	maxViewBytes   = 250 << 10
)

// length counts as Slack's clients do, in UTF-16 units. Slack does not say what
// it counts itself; this is never less than the number of code points.
func length(s string) int {
	n := 0
	for _, r := range s {
		n += utf16.RuneLen(r)
	}
	return n
}

// checker collects what is wrong with blocks, each with a JSON pointer.
type checker struct {
	surface surface
	why     []string
}

func (c *checker) bad(at, format string, a ...any) {
	c.why = append(c.why, fmt.Sprintf(format, a...)+" [json-pointer:"+at+"]")
}

// blockShapes says which fields a block may have beyond type and block_id. Types
// that no app of ours sends are only known to exist.
var blockShapes = map[string][]string{
	"actions":   {"elements"},
	"context":   {"elements"},
	"divider":   {},
	"header":    {"text", "level"},
	"image":     {"image_url", "alt_text", "title", "slack_file"},
	"input":     {"label", "element", "hint", "optional", "dispatch_action"},
	"markdown":  {"text"},
	"rich_text": {"elements"},
	"section":   {"text", "fields", "accessory", "expand"},
	"table":     {"rows", "column_settings"},
}

var onlyInMessages = []string{"markdown", "table"}

// checkBlocks returns what Slack would reject.
func checkBlocks(at string, blocks []Block, on surface) []string {
	c := &checker{surface: on}
	most := 50
	if on == surfaceModal {
		most = 100
	}
	if len(blocks) > most {
		c.bad(at, "no more than %d items allowed", most)
	}
	ids := map[string]bool{}
	for i, b := range blocks {
		here := fmt.Sprintf("%s/%d", at, i)
		if id, ok := b["block_id"]; ok {
			s, _ := id.(string)
			c.length(here+"/block_id", s, 1, maxID)
			if ids[s] {
				c.bad(here+"/block_id", "`block_id` already exists: %s", s)
			}
			ids[s] = true
		}
		c.block(here, b)
	}
	return c.why
}

func (c *checker) block(at string, b Block) {
	kind, _ := b["type"].(string)
	fields, known := blockShapes[kind]
	if !known || c.surface == surfaceModal && slices.Contains(onlyInMessages, kind) {
		c.bad(at+"/type", "unsupported type: %s", kind)
		return
	}
	c.fields(at, b, append([]string{"type", "block_id"}, fields...)...)
	switch kind {
	case "section":
		_, hasText := b["text"]
		items, hasFields := b["fields"].([]any)
		if !hasText && len(items) == 0 {
			c.bad(at, "must define either `text` or `fields`")
		}
		if hasText {
			c.text(at+"/text", b["text"], maxText, true)
		}
		if hasFields && len(items) > 10 {
			c.bad(at+"/fields", "no more than 10 items allowed")
		}
		for i, f := range items {
			c.text(fmt.Sprintf("%s/fields/%d", at, i), f, 2000, true)
		}
		if a, ok := b["accessory"]; ok {
			c.elements(at, "accessory", []any{a})
		}
	case "header":
		c.text(at+"/text", b["text"], 150, false)
	case "actions":
		items, _ := b["elements"].([]any)
		c.count(at+"/elements", len(items), 25)
		c.elements(at, "elements", items)
	case "context":
		items, _ := b["elements"].([]any)
		c.count(at+"/elements", len(items), 10)
		for i, e := range items {
			here := fmt.Sprintf("%s/elements/%d", at, i)
			if m, _ := e.(Block); m["type"] == "image" {
				c.image(here, m)
			} else {
				c.text(here, e, maxText, true)
			}
		}
	case "image":
		c.image(at, b)
	case "input":
		c.text(at+"/label", b["label"], 2000, false)
		if h, ok := b["hint"]; ok {
			c.text(at+"/hint", h, 2000, false)
		}
		c.elements(at, "element", []any{b["element"]})
	case "markdown":
		c.string(at+"/text", b["text"], 1, maxMessageText)
	case "rich_text":
		items, ok := b["elements"].([]any)
		if !ok {
			c.bad(at, "missing required field: elements")
		}
		for i, e := range items {
			c.rich(fmt.Sprintf("%s/elements/%d", at, i), e)
		}
	}
}

func (c *checker) image(at string, b Block) {
	c.string(at+"/alt_text", b["alt_text"], 1, 2000)
	if _, ok := b["slack_file"]; !ok {
		c.string(at+"/image_url", b["image_url"], 1, 3000)
	}
	if t, ok := b["title"]; ok {
		c.text(at+"/title", t, 2000, false)
	}
}

// elements checks interactive elements of one block, whose action ids differ.
func (c *checker) elements(at, field string, items []any) {
	ids := map[string]bool{}
	for i, item := range items {
		here := at + "/" + field
		if field == "elements" {
			here = fmt.Sprintf("%s/%d", here, i)
		}
		e, ok := item.(Block)
		if !ok {
			c.bad(here, "missing required field: element")
			continue
		}
		if id, ok := e["action_id"]; ok {
			s, _ := id.(string)
			c.length(here+"/action_id", s, 1, maxID)
			if ids[s] {
				c.bad(here+"/action_id", "`action_id` already exists: %s", s)
			}
			ids[s] = true
		}
		c.element(here, e)
	}
}

func (c *checker) element(at string, e Block) {
	kind, _ := e["type"].(string)
	if confirm, ok := e["confirm"]; ok {
		c.confirm(at+"/confirm", confirm)
	}
	if p, ok := e["placeholder"]; ok {
		c.text(at+"/placeholder", p, 150, false)
	}
	switch kind {
	case "button":
		c.fields(at, e, "type", "text", "action_id", "url", "value", "style", "confirm", "accessibility_label")
		c.text(at+"/text", e["text"], 75, false)
		for field, most := range map[string]int{"value": 2000, "url": 3000, "accessibility_label": 75} {
			if v, ok := e[field]; ok {
				c.string(at+"/"+field, v, 0, most)
			}
		}
		if style, ok := e["style"]; ok && style != "primary" && style != "danger" {
			c.bad(at+"/style", "must be a valid enum value: primary, danger")
		}
	case "plain_text_input":
		if v, ok := e["initial_value"]; ok {
			c.string(at+"/initial_value", v, 0, maxText)
		}
		for _, field := range []string{"min_length", "max_length"} {
			if n, ok := e[field].(float64); ok && (n < 0 || n > maxText) {
				c.bad(at+"/"+field, "must be between 0 and %d", maxText)
			}
		}
	case "static_select", "radio_buttons", "checkboxes", "overflow", "multi_static_select":
		most := map[string]int{"radio_buttons": 10, "checkboxes": 10, "overflow": 5}[kind]
		if most == 0 {
			most = 100
		}
		items, _ := e["options"].([]any)
		c.count(at+"/options", len(items), most)
		for i, o := range items {
			here := fmt.Sprintf("%s/options/%d", at, i)
			m, _ := o.(Block)
			c.text(here+"/text", m["text"], 75, kind == "radio_buttons" || kind == "checkboxes")
			c.string(here+"/value", m["value"], 1, 150)
			if d, ok := m["description"]; ok {
				c.text(here+"/description", d, 75, kind == "radio_buttons" || kind == "checkboxes")
			}
		}
	case "image":
		c.image(at, e)
	case "datepicker", "timepicker", "datetimepicker", "users_select", "conversations_select", "channels_select",
		"external_select", "number_input", "email_text_input", "url_text_input", "rich_text_input":
	default:
		c.bad(at+"/type", "unsupported type: %s", kind)
	}
}

func (c *checker) confirm(at string, v any) {
	m, ok := v.(Block)
	if !ok {
		c.bad(at, "must be an object")
		return
	}
	c.fields(at, m, "title", "text", "confirm", "deny", "style")
	c.text(at+"/title", m["title"], 100, false)
	c.text(at+"/text", m["text"], 300, true)
	c.text(at+"/confirm", m["confirm"], 30, false)
	c.text(at+"/deny", m["deny"], 30, false)
}

// text checks a text object; mrkdwn says whether it may be more than plain_text.
func (c *checker) text(at string, v any, most int, mrkdwn bool) {
	m, ok := v.(Block)
	if !ok {
		c.bad(at, "missing required field: text")
		return
	}
	c.fields(at, m, "type", "text", "emoji", "verbatim")
	switch m["type"] {
	case "plain_text":
		if _, ok := m["verbatim"]; ok {
			c.bad(at+"/verbatim", "additional property: verbatim")
		}
	case "mrkdwn":
		if _, ok := m["emoji"]; ok {
			c.bad(at+"/emoji", "additional property: emoji")
		}
		if !mrkdwn {
			c.bad(at+"/type", "must be plain_text")
		}
	default:
		c.bad(at+"/type", "unsupported type: %v", m["type"])
	}
	c.string(at+"/text", m["text"], 1, most)
}

// richLeaves says what an element within a rich text section must have.
var richLeaves = map[string]string{
	"text": "text", "link": "url", "user": "user_id", "usergroup": "usergroup_id", "channel": "channel_id",
	"team": "team_id", "emoji": "name", "broadcast": "range", "date": "timestamp", "color": "value",
}

func (c *checker) rich(at string, v any) {
	m, _ := v.(Block)
	items, ok := m["elements"].([]any)
	if !ok {
		c.bad(at, "missing required field: elements")
		return
	}
	kind, _ := m["type"].(string)
	switch kind {
	case "rich_text_section", "rich_text_quote", "rich_text_preformatted":
		if language, ok := m["language"]; ok && kind == "rich_text_preformatted" {
			c.string(at+"/language", language, 1, maxID)
		}
		for i, e := range items {
			here := fmt.Sprintf("%s/elements/%d", at, i)
			leaf, _ := e.(Block)
			leafKind, _ := leaf["type"].(string)
			must, known := richLeaves[leafKind]
			switch {
			case !known || kind == "rich_text_preformatted" && leafKind != "text" && leafKind != "link":
				c.bad(here+"/type", "unsupported type: %s", leafKind)
			case leaf[must] == nil:
				c.bad(here, "missing required field: %s", must)
			case leaf[must] == "":
				c.bad(here+"/"+must, "must be more than 0 characters")
			}
		}
	case "rich_text_list":
		if m["style"] != "bullet" && m["style"] != "ordered" {
			c.bad(at+"/style", "must be a valid enum value: bullet, ordered")
		}
		for i, e := range items {
			here := fmt.Sprintf("%s/elements/%d", at, i)
			if s, _ := e.(Block); s["type"] != "rich_text_section" {
				c.bad(here+"/type", "must be rich_text_section")
			}
			c.rich(here, e)
		}
	default:
		c.bad(at+"/type", "unsupported type: %s", kind)
	}
}

func (c *checker) fields(at string, m Block, allowed ...string) {
	for k := range m {
		if !slices.Contains(allowed, k) {
			c.bad(at, "additional property: %s", k)
		}
	}
}

func (c *checker) count(at string, n, most int) {
	if n == 0 {
		c.bad(at, "no less than 1 items allowed")
	}
	if n > most {
		c.bad(at, "no more than %d items allowed", most)
	}
}

func (c *checker) string(at string, v any, least, most int) {
	s, ok := v.(string)
	if !ok {
		c.bad(at, "must be a string")
		return
	}
	c.length(at, s, least, most)
}

func (c *checker) length(at, s string, least, most int) {
	if n := length(s); n < least {
		c.bad(at, "must be more than %d characters", least-1)
	} else if n > most {
		c.bad(at, "must be less than %d characters", most+1)
	}
}

// textLength counts all that a reader of the blocks sees as text.
func textLength(v any) int {
	n := 0
	switch v := v.(type) {
	case []Block:
		for _, b := range v {
			n += textLength(b)
		}
	case []any:
		for _, e := range v {
			n += textLength(e)
		}
	case Block:
		for k, e := range v {
			if s, ok := e.(string); ok && k == "text" {
				n += length(s)
			} else {
				n += textLength(e)
			}
		}
	}
	return n
}

// rendered returns blocks as Slack keeps them: with the ids and defaults that the
// app left out. It makes new ones, for others may be reading the old. The lock is held.
func (s *Server) rendered(blocks []Block) []Block {
	if blocks == nil {
		return nil
	}
	out := make([]Block, len(blocks))
	for i, b := range blocks {
		out[i], _ = s.complete(b).(Block)
		if _, ok := out[i]["block_id"]; !ok {
			out[i]["block_id"] = s.id("b")
		}
	}
	return out
}

func (s *Server) complete(v any) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = s.complete(e)
		}
		return out
	case Block:
		out := make(Block, len(v)+1)
		for k, e := range v {
			out[k] = s.complete(e)
		}
		kind, _ := out["type"].(string)
		defaults := Block{}
		switch kind {
		case "plain_text":
			defaults["emoji"] = true
		case "mrkdwn":
			defaults["verbatim"] = false
		case "button", "plain_text_input", "static_select", "radio_buttons", "checkboxes", "overflow":
			if _, ok := out["action_id"]; !ok {
				defaults["action_id"] = s.id("a")
			}
		}
		for k, d := range defaults {
			if _, ok := out[k]; !ok {
				out[k] = d
			}
		}
		return out
	}
	return v
}

// element finds an interactive element by its action id, or by "block/action"
// where several blocks have one of that name.
func element(blocks []Block, action string) (Block, string, error) {
	type hit struct {
		e     Block
		block string
	}
	var hits []hit
	for _, b := range blocks {
		id, _ := b["block_id"].(string)
		items, _ := b["elements"].([]any)
		items = append(slices.Clone(items), b["accessory"], b["element"])
		for _, item := range items {
			e, _ := item.(Block)
			if a, ok := e["action_id"].(string); ok && (a == action || id+"/"+a == action) {
				hits = append(hits, hit{e, id})
			}
		}
	}
	switch len(hits) {
	case 0:
		return nil, "", fmt.Errorf("there is no %q here, only:\n%s", action, strings.TrimRight(Text(blocks), "\n"))
	case 1:
		return hits[0].e, hits[0].block, nil
	}
	return nil, "", fmt.Errorf("there are %d of %q here: name the block too, as block/action", len(hits), action)
}
