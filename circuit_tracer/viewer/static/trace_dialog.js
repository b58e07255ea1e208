// Tracing a prompt on the server: its tokens as one types, progress while it runs, and a way to end it.

import { h, replace, spacedText } from "./dom.js";
import { targetPicker } from "./target_picker.js";

const PAUSE = 250;
const LONGER = 700; // before the model is asked what it would say
const SETTINGS = [
  ["max_n_logits", "Most outputs to explain", 10, { min: 1, max: 1000, step: 1 }],
  ["desired_logit_prob", "Explain outputs until this probability", 0.95, { min: 0, max: 1, step: "any" }],
  ["max_feature_nodes", "Features with a row of their own (0: all)", null, { min: 0, step: 1 }], // what the model has
  ["node_threshold", "Keep nodes with this share of influence", 0.8, { min: 0, max: 1, step: "any" }],
  ["edge_threshold", "Keep links with this share of influence", 0.98, { min: 0, max: 1, step: "any" }],
];

/** The form by itself: {element, stop}. server: {client, session}. prompt, target: what to begin with. */
export function traceForm({ client, session }, prompt = "", target = "") {
  const parts = { job: null, tokenizing: null, asking: null, fits: false }; // fits: whether the model can read the prompt
  const shown = h("div", { class: "token-row", "data-testid": "trace-tokens", "aria-live": "polite" });
  const text = h("textarea", { id: "trace-prompt", rows: 4, "data-testid": "trace-prompt", spellcheck: "false" });
  text.value = prompt;
  const chat = h("input", { type: "checkbox", "data-testid": "trace-chat" });
  const request = () => (chat.checked ? { messages: [{ role: "user", content: text.value }] } : { prompt: text.value });
  const picker = targetPicker(target);
  const tokenize = later(PAUSE, () => {
    parts.tokenizing = tokenChips(client, request(), parts).then((chips) => replace(shown, chips));
  });
  const suggest = later(LONGER, () => {
    if (!parts.job) parts.asking = offerOutputs(client, request, picker, parts);
  });
  for (const act of [tokenize, suggest]) {
    text.addEventListener("input", act);
    chat.addEventListener("change", act);
    act();
  }

  const name = field("Name", "trace-slug", { type: "text", placeholder: "from the prompt", maxlength: 200 });
  const settings = SETTINGS.map(([key, label, value, limits]) => [
    key,
    field(label, `trace-${key}`, { type: "number", value: value ?? session.model.feature_nodes, ...limits }),
  ]);
  const bar = h("progress", { "data-testid": "trace-progress", "aria-label": "Progress" });
  const stage = h("span", { class: "quiet", role: "status", "data-testid": "trace-stage" });
  const problem = h("p", { class: "finding", role: "alert", "data-testid": "trace-problem" });
  const go = h("button", { class: "primary", type: "submit", "data-testid": "trace-go" }, "Trace");
  const cancel = h("button", { type: "button", "data-testid": "trace-cancel" }, "Cancel");
  cancel.addEventListener("click", () => parts.job?.cancel().catch(() => {}));
  const running = h("div", { class: "running", hidden: true }, bar, stage, cancel);

  const run = async () => {
    replace(problem);
    const chosen = picker.chosen();
    await parts.asking; // the server does one thing at a time
    parts.job = client.trace({
      ...request(),
      ...(name.input.value.trim() ? { slug: name.input.value.trim() } : {}),
      ...(chosen.length ? { targets: chosen } : {}),
      ...Object.fromEntries(settings.map(([key, each]) => [key, Number(each.input.value)])),
    });
    [running.hidden, go.disabled] = [false, true];
    try {
      const result = await parts.job.result((report) => showProgress(bar, stage, report));
      if (result) location.assign(`${location.pathname}?slug=${encodeURIComponent(result.slug)}`);
      else replace(problem, "The trace was cancelled; nothing was saved.");
    } catch (error) {
      replace(problem, error.message);
    }
    parts.job = null;
    [running.hidden, go.disabled] = [true, false];
    go.focus();
  };
  const element = h(
    "form",
    { class: "form", on: { submit: (event) => (event.preventDefault(), run()) } },
    h("label", { for: "trace-prompt" }, "Prompt", h("span", { class: "quiet" }, ` for ${modelWords(session.model)}`)),
    text,
    session.model.chat
      ? h("label", { class: "toggle" }, chat, "as a user\u2019s message, under the chat template")
      : null,
    shown,
    picker.element,
    h(
      "details",
      { class: "settings" },
      h("summary", {}, "Settings"),
      h("div", { class: "fields" }, name.element, ...settings.map(([, each]) => each.element)),
    ),
    problem,
    running,
    h("div", { class: "form-end" }, go),
  );
  return { element, focus: () => text.focus(), stop: () => parts.job?.cancel().catch(() => {}) };
}

/** The form in a dialog; closing it ends what it began. */
export function traceDialog(server, prompt, target = "") {
  const form = traceForm(server, prompt, target);
  const dialog = h("dialog", { class: "trace", "aria-labelledby": "trace-title", "data-testid": "trace-dialog" });
  dialog.append(
    h(
      "div",
      { class: "dialog-head" },
      h("h2", { id: "trace-title" }, "Trace a prompt"),
      h("button", { class: "small", on: { click: () => dialog.close() } }, "Close"),
    ),
    form.element,
  );
  dialog.addEventListener("close", () => {
    form.stop();
    dialog.remove();
  });
  document.body.append(dialog);
  dialog.showModal();
  form.focus();
}

function modelWords({ name, transcoders, n_layers, features_a_layer }) {
  const sets = Array.isArray(transcoders) ? "a transcoder a layer" : transcoders;
  return [name, sets, `${n_layers} layers of ${features_a_layer} features`].filter(Boolean).join(" \u00b7 ");
}

async function tokenChips(client, request, parts) {
  parts.fits = false;
  try {
    const { tokens, most } = await client.tokens(request);
    parts.fits = tokens.length > 0 && tokens.length <= (most ?? Infinity);
    const count = `${tokens.length} tokens${most ? ` of at most ${most}` : ""}`;
    return [
      tokens.map(({ id, text }) => h("span", { class: "chip", title: `id ${id}` }, spacedText(text))),
      h("span", { class: "quiet" }, count),
    ];
  } catch (error) {
    return h("span", { class: "finding" }, error.message);
  }
}

/** What the model would say after the prompt; nothing where it cannot be asked now. */
async function offerOutputs(client, request, picker, parts) {
  const asked = request();
  let outputs = [];
  await parts.tokenizing;
  try {
    if (parts.fits) ({ outputs } = await client.outputs(asked));
  } catch {
    // People type what they want explained.
  }
  if (JSON.stringify(request()) === JSON.stringify(asked)) picker.suggest(outputs);
}

function showProgress(bar, stage, { done, total, stage: what, seconds }) {
  if (total > 0) {
    bar.max = total;
    bar.value = done;
  } else bar.removeAttribute("value");
  stage.textContent = `${what}${total > 0 ? `, ${done} of ${total}` : ""} \u00b7 ${seconds.toFixed(0)} s`;
}

/** A labelled input: {element, input}. */
export function field(label, id, attributes) {
  const input = h("input", { id, "data-testid": id, ...attributes });
  return { input, element: h("label", { class: "field", for: id }, h("span", {}, label), input) };
}

function later(pause, act) {
  let timer = null;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, pause);
  };
}
