package slacktest

import (
	"fmt"
	"regexp"
	"strings"
)

// Text renders blocks as plain text, near to what a person sees: buttons as
// [Approve], fields of a form as Label: [value], and what Slack makes live out of
// text, such as mentions and links, between « and », so that a test can tell a
// mention from its letters.
func Text(blocks []Block) string {
	var b strings.Builder
	for _, block := range blocks {
		if t := blockText(block); t != "" {
			b.WriteString(strings.TrimRight(t, "\n") + "\n")
		}
	}
	return b.String()
}

func blockText(b Block) string {
	items, _ := b["elements"].([]any)
	switch b["type"] {
	case "header":
		return "# " + textObject(b["text"])
	case "divider":
		return "---"
	case "section":
		var lines []string
		if b["text"] != nil {
			lines = append(lines, textObject(b["text"]))
		}
		fields, _ := b["fields"].([]any)
		for _, f := range fields {
			lines = append(lines, textObject(f))
		}
		if e, ok := b["accessory"].(Block); ok {
			lines = append(lines, elementText(e))
		}
		return strings.Join(lines, "\n")
	case "context", "actions":
		between := " "
		if b["type"] == "context" {
			between = " | "
		}
		var parts []string
		for _, item := range items {
			e, _ := item.(Block)
			parts = append(parts, elementText(e))
		}
		return strings.Join(parts, between)
	case "input":
		e, _ := b["element"].(Block)
		line := textObject(b["label"]) + ": " + elementText(e)
		if b["hint"] != nil {
			line += "\n(" + textObject(b["hint"]) + ")"
		}
		return line
	case "image":
		return elementText(b)
	case "markdown":
		s, _ := b["text"].(string)
		return s
	case "rich_text":
		var lines strings.Builder
		for _, item := range items {
			e, _ := item.(Block)
			lines.WriteString(richText(e) + "\n")
		}
		return lines.String()
	}
	return fmt.Sprintf("(%v)", b["type"])
}

func elementText(e Block) string {
	switch e["type"] {
	case "plain_text", "mrkdwn":
		return textObject(e)
	case "button":
		return "[" + textObject(e["text"]) + "]"
	case "image":
		return fmt.Sprintf("(image: %v)", e["alt_text"])
	case "plain_text_input":
		if v, ok := e["initial_value"].(string); ok {
			return "[" + v + "]"
		}
	case "static_select", "radio_buttons", "checkboxes", "overflow", "multi_static_select":
		var names []string
		options, _ := e["options"].([]any)
		for _, o := range options {
			m, _ := o.(Block)
			names = append(names, textObject(m["text"]))
		}
		return "[" + strings.Join(names, " / ") + "]"
	}
	if e["placeholder"] != nil {
		return "[" + textObject(e["placeholder"]) + "]"
	}
	return "[]"
}

func richText(e Block) string {
	items, _ := e["elements"].([]any)
	var b strings.Builder
	for i, item := range items {
		leaf, _ := item.(Block)
		if e["type"] == "rich_text_list" {
			mark := "- "
			if e["style"] == "ordered" {
				mark = fmt.Sprintf("%d. ", i+1)
			}
			indent, _ := e["indent"].(float64)
			b.WriteString(strings.Repeat("  ", int(indent)) + mark + richText(leaf) + "\n")
			continue
		}
		b.WriteString(leafText(leaf))
	}
	text := strings.TrimRight(b.String(), "\n")
	switch e["type"] {
	case "rich_text_preformatted":
		return "    " + strings.ReplaceAll(text, "\n", "\n    ")
	case "rich_text_quote":
		return "> " + strings.ReplaceAll(text, "\n", "\n> ")
	}
	return text
}

func leafText(e Block) string {
	field := func(name string) string { s, _ := e[name].(string); return s }
	switch e["type"] {
	case "text":
		return field("text")
	case "link":
		return link(field("url"), field("text"))
	case "emoji":
		return ":" + field("name") + ":"
	case "user":
		return "«@" + field("user_id") + "»"
	case "usergroup":
		return "«@" + field("usergroup_id") + "»"
	case "channel":
		return "«#" + field("channel_id") + "»"
	case "broadcast":
		return "«@" + field("range") + "»"
	case "date":
		return "«" + field("fallback") + "»"
	}
	return fmt.Sprintf("«%v»", e["type"])
}

func textObject(v any) string {
	m, _ := v.(Block)
	text, _ := m["text"].(string)
	if m["type"] == "mrkdwn" {
		return mrkdwn(text)
	}
	return text
}

var (
	live     = regexp.MustCompile(`<([^<>\n]+)>`)
	entities = strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&")
)

// mrkdwn shows what Slack makes of its markup, but for bold and the like.
func mrkdwn(text string) string {
	text = live.ReplaceAllStringFunc(text, func(s string) string {
		target, label, _ := strings.Cut(strings.Trim(s, "<>"), "|")
		switch {
		case target == "":
			return s
		case target[0] == '@', target[0] == '#':
			return "«" + target + "»"
		case target[0] == '!':
			if label != "" { // a date, or a group by its name
				return "«" + label + "»"
			}
			return "«@" + target[1:] + "»"
		}
		return link(target, label)
	})
	return entities.Replace(text)
}

func link(url, label string) string {
	if label == "" || label == url {
		return "«" + url + "»"
	}
	return "«" + label + " -> " + url + "»"
}
