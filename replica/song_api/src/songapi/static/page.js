"use strict";

const PER_PAGE = 20;
const byId = (id) => document.getElementById(id);
let page = 1;

async function ask(url) {
  let answer;
  try {
    answer = await fetch(url, { headers: { Accept: "application/json" } });
  } catch {
    throw new Error("The service cannot be reached.");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw new Error(`The service answered ${answer.status}: ${body.error || answer.statusText}`);
  }
  return body;
}

function showError(error) {
  byId("error").textContent = error ? error.message : "";
  byId("error").hidden = !error;
}

function minutes(seconds) {
  if (seconds === null) return "";
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

async function showSong(id) {
  try {
    const song = await ask(`/api/v1/songs/${id}`);
    byId("title").textContent = song.title;
    byId("facts").textContent = [song.artist, song.status, minutes(song.duration_seconds), song.style]
      .filter(Boolean).join(" · ");
    byId("audio").src = song.audio_url;
    byId("sketch").textContent = song.sketch ? `Made from the sketch “${song.sketch.title || song.sketch.prompt}”` : "";
    byId("lyrics").textContent = song.lyrics || "";
    byId("song").hidden = false;
    showError(null);
  } catch (error) {
    showError(error);
  }
}

function row(song) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  for (const [name, text] of [["name", song.title], ["artist", song.artist], ["time", minutes(song.duration_seconds)]]) {
    const part = document.createElement("span");
    part.className = name;
    part.textContent = text;
    button.append(part);
  }
  button.addEventListener("click", () => showSong(song.id));
  item.append(button);
  return item;
}

async function showPage(number) {
  try {
    const { items, total } = await ask(`/api/v1/songs?page=${number}&per_page=${PER_PAGE}`);
    page = number;
    const last = Math.max(1, Math.ceil(total / PER_PAGE));
    byId("songs").replaceChildren(...items.map(row));
    byId("total").textContent = `${total.toLocaleString("en")} songs`;
    byId("page").textContent = `${page} of ${last}`;
    byId("newer").disabled = page <= 1;
    byId("older").disabled = page >= last;
    showError(null);
  } catch (error) {
    showError(error);
  }
}

byId("newer").addEventListener("click", () => showPage(page - 1));
byId("older").addEventListener("click", () => showPage(page + 1));
showPage(1);
